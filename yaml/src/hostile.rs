//! Documents by whoever wants to do harm, for the tests of all who read files of strangers. Nothing else uses it.

/// About the size of each, in bytes.
pub const SIZE: usize = 128 * 1024;

/// Documents that were written to cost time, memory or stack.
pub fn hostile() -> Vec<(&'static str, String)> {
    let repeat = |text: &str| text.repeat(SIZE / text.len());
    let lines = |line: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        let mut at = 0;
        while text.len() < SIZE {
            text += &line(at);
            at += 1;
        }
        text
    };
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    let mut merges = String::from("a0: &a0 {k: 1, l: 2}\n");
    for at in 1..200 {
        let alias = format!("*a{}", at - 1);
        bomb += &format!("a{at}: &a{at} [{}]\n", [alias.as_str(); 10].join(", "));
        merges += &format!("a{at}: &a{at} {{<<: [{}], k{at}: {alias}}}\n", [alias.as_str(); 10].join(", "));
    }
    let wide: String = (0..6000).map(|at| format!("k{at}: 1, ")).collect();
    vec![
        ("flow lists", repeat("[")),
        ("flow mappings", repeat("{a: ")),
        ("block lists", repeat("- ")),
        ("complex keys", repeat("? ")),
        ("a staircase", lines(&|at| format!("{}a:\n", " ".repeat(at)))),
        ("an alias bomb", bomb),
        ("a merge bomb", merges),
        ("wide merges", format!("a: &a {{{wide}}}\nb:\n{}", "- {<<: *a}\n".repeat(6000))),
        ("a long text often", format!("a: &a {}\nb: [{}]", "x".repeat(SIZE / 2), "*a, ".repeat(SIZE / 8))),
        ("many anchors", lines(&|at| format!("k{at}: &a{at} 1\n"))),
        ("one key", repeat("a: 1\n")),
        ("many keys", lines(&|at| format!("k{at}: 1\n"))),
        ("quotes", repeat("\"")),
        ("anchors only", repeat("&a ")),
        ("tags only", repeat("!a ")),
        ("directives", repeat("%A b\n")),
        ("documents", repeat("---\n")),
        ("commas", format!("[{}", repeat(","))),
        ("entries", format!("[{}]", repeat("1,"))),
        ("tabs", repeat("\t")),
        ("line ends", repeat("\n")),
        ("comments", repeat("#\n")),
        ("one long word", repeat("x")),
        ("one long key", repeat("x") + ": 1"),
        ("digits", repeat("9")),
        ("a folded text", format!("a: >\n{}", repeat(" x\n\n"))),
        ("NULs", repeat("\0")),
    ]
}
