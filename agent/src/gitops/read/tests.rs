//! Files as people write and break them, and what is read of them.

mod costs;

use super::*;
use crate::gitops::cost::Cost;
use bytes::Bytes;
use postern_yaml::hostile::hostile;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use std::time::Duration;

fn file(source: &str, data: impl Into<Bytes>) -> File {
    File { source: source.to_owned(), data: data.into() }
}

/// Objects as `line id`, then problems.
fn shown(files: &[File]) -> (Vec<String>, Vec<String>) {
    let Read { objects, problems } = read(files);
    let objects = objects.iter().map(|object| format!("{} {}", object.line, object.id));
    (objects.collect(), problems.iter().map(ToString::to_string).collect())
}

fn of(text: &str) -> (Vec<String>, Vec<String>) {
    shown(&[file("a.yaml", text.to_owned())])
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n")
}

/// The value of an object's key `data`.
fn data(text: &str) -> Result<Value, String> {
    let text = format!("{}{text}", map("a"));
    let Read { objects, problems } = read(&[file("a.yaml", text)]);
    match (&objects[..], &problems[..]) {
        ([object], []) => Ok(object.value["data"].clone()),
        ([], [problem]) => Err(problem.to_string()),
        other => panic!("one object or one problem: {other:?}"),
    }
}

#[test]
fn objects_are_read_from_documents_lists_and_json() {
    let (a, b) = (map("a"), map("b"));
    let json =
        |name: &str| format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}}}"#);
    let item = |name: &str| format!("- {}", map(name).trim_end().replace('\n', "\n  "));
    for (text, wanted) in [
        (String::new(), &[][..]),
        ("# nothing\n---\n---\n~\n---\nnull\n...\n".to_owned(), &[]),
        (a.clone(), &["1 ConfigMap a"]),
        (format!("\u{feff}# first\n\n{a}"), &["3 ConfigMap a"]),
        (format!("%YAML 1.1\n---\n{a}---\n\n{b}...\n"), &["3 ConfigMap a", "9 ConfigMap b"]),
        (format!("{a}---\n{b}").replace('\n', "\r\n"), &["1 ConfigMap a", "6 ConfigMap b"]),
        (format!("{a}---\n\u{feff}{b}"), &["1 ConfigMap a", "6 ConfigMap b"]),
        (format!("{a}\u{feff}---\n{b}"), &["1 ConfigMap a", "6 ConfigMap b"]),
        (json("a"), &["1 ConfigMap a"]),
        (format!("--- {}\n--- # b\n{}\n", json("a"), json("b")), &["1 ConfigMap a", "3 ConfigMap b"]),
        (json("a").replace('{', "\t{\n\t\t"), &["1 ConfigMap a"]),
        (
            format!("{}{}\n\n  {}", json("a"), json("b"), json("c")),
            &["1 ConfigMap a", "1 ConfigMap b", "3 ConfigMap c"],
        ),
        (
            format!("apiVersion: v1\nkind: List\nitems:\n{}\n{}\n", item("a"), item("b")),
            &["4 ConfigMap a", "8 ConfigMap b"],
        ),
        ("apiVersion: v1\nkind: List\n".to_owned(), &[]),
        ("apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems: null\n".to_owned(), &[]),
        (
            format!("kind: List\nitems:\n- kind: List\n  items:\n  {}", item("a").replace('\n', "\n  ")),
            &["5 ConfigMap a"],
        ),
        (
            "apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: a, namespace: b}\n"
                .to_owned(),
            &["4 apps/Deployment b/a"],
        ),
        (
            "apiVersion: a.b/v1\nkind: AllowList\nmetadata: {name: a}\nitems: [1]\n".to_owned(),
            &["1 a.b/AllowList a"],
        ),
        ("apiVersion: a.b/v1\nkind: AllowList\nmetadata: {name: a}\n".to_owned(), &["1 a.b/AllowList a"]),
        (
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: 'system:a_B'}"
                .to_owned(),
            &["1 rbac.authorization.k8s.io/ClusterRole system:a_B"],
        ),
        (
            "x: &a {apiVersion: v1, kind: ConfigMap}\n<<: *a\nmetadata: {name: a}\n".to_owned(),
            &["1 ConfigMap a"],
        ),
    ] {
        assert_eq!(of(&text), (texts(wanted), vec![]), "{text}");
    }
}

#[test]
fn items_of_a_typed_list_say_what_they_are() {
    let text = "apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: a}\n";
    let object = &read(&[file("a.yaml", text)]).objects[0];
    assert_eq!(
        *object.value,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}})
    );
    assert_eq!((&*object.version, object.digest), ("v1", digest(&object.value)));
}

#[test]
fn values_are_what_kubectl_would_send() {
    for (text, wanted) in [
        (
            "data: {a: yes, b: 'yes', c: \"on\", d: off}",
            json!({"a": true, "b": "yes", "c": "on", "d": false}),
        ),
        (
            "data: {mode: 0644, other: 0o644, quoted: '0644'}",
            json!({"mode": 420, "other": 420, "quoted": "0644"}),
        ),
        ("data: [1.0, 1e3, 1.5, .5, 12e03]", json!([1, 1000, 1.5, 0.5, 12000])),
        ("data: [9223372036854775807, 18446744073709551615]", json!([i64::MAX, u64::MAX])),
        ("data: 100000000000000000000", json!(1e20)),
        ("data: {a: ~, b:, c: null, d: ''}", json!({"a": null, "b": null, "c": null, "d": ""})),
        (
            "data: {y: 1, 0x10: 2, 1.0: 3, off: 4, 'n': 5}",
            json!({"true": 1, "16": 2, "1": 3, "false": 4, "n": 5}),
        ),
        ("data: 2001-01-01", json!("2001-01-01")),
        ("data: !!str 12", json!("12")),
        ("data: |\n  a\n  ---\n   b\n\n", json!("a\n---\n b\n")),
        ("data: |+\n  a\n\n", json!("a\n\n")),
        ("data: |-\n  a\n\n", json!("a")),
        ("data: >\n  a\n  b\n\n  c\n", json!("a b\nc\n")),
        ("data: |\r\n  a\r\n  b\r\n", json!("a\nb\n")),
        ("data: |\n  no newline at the end", json!("no newline at the end\n")),
        ("data: |2\n    a\n", json!("  a\n")),
        ("data: 'a\n  b\n\n  c'", json!("a b\nc")),
        ("data: \"\\u00e9\\n\\x41\"", json!("\u{e9}\nA")),
        ("data: |\n  \tindented by a tab\n", json!("\tindented by a tab\n")),
        ("d: &d {a: 1, b: 2}\ndata: {b: 3, <<: *d}", json!({"a": 1, "b": 3})),
        ("d: &d {a: 1, b: 2}\ndata: {<<: [{a: 0}, *d], b: 3}", json!({"a": 0, "b": 3})),
        ("d: &d [1]\ndata: [*d, *d]", json!([[1], [1]])),
    ] {
        assert_eq!(data(text), Ok(wanted), "{text}");
    }
    let text = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":["\ud83d\ude00",1.0,1e3,"\/",0.5]}"#;
    let Read { objects, problems } = read(&[file("a.json", text)]);
    assert_eq!(problems, []);
    assert_eq!(objects[0].value["data"], json!(["\u{1f600}", 1, 1000, "/", 0.5]));
}

#[test]
fn what_no_object_may_hold_is_said_where_it_stands() {
    for (text, wanted) in [
        ("data: .nan", "5:7: this is no number that JSON has; a finite number, or text in quotes, is wanted"),
        (
            "data:\n  a: -.inf",
            "6:6: this is no number that JSON has; a finite number, or text in quotes, is wanted",
        ),
        ("data: {a: 1, a: 2}", "5:14: written twice, first in line 5; every key once is wanted"),
        ("data: {on: 1, 'true': 2}", "5:15: written twice, first in line 5; every key once is wanted"),
        ("kind: ConfigMap", "5:1: written twice, first in line 2; every key once is wanted"),
        ("data: {~: 1}", "5:8: nothing as a key; a word is wanted"),
        ("data: {? [a] : 1}", "5:10: a list as a key; a word is wanted"),
        ("data: !vault abc", "5:14: a tag; no tag is wanted"),
        (
            "data: {<<: 5}",
            "5:12: this cannot be merged; an alias of a mapping or a list of such aliases is wanted",
        ),
        ("data: &a [*a]", "5:11: an alias of what contains it; an anchor above is wanted"),
    ] {
        assert_eq!(data(text), Err(format!("a.yaml:{wanted}")), "{text}");
    }
    for (text, wanted) in [
        ("data: *a", "a.yaml:5:7: not YAML: "),
        ("data: [1, 2", "a.yaml:5:"),
        ("data:\n\ta: 1", "a.yaml:6:"),
        ("data: 'a", "a.yaml:5:"),
        ("data: a: b", "a.yaml:5:"),
        ("data: @a", "a.yaml:5:7: not YAML: "),
        ("data:\n  b: 1\n a: 2", "a.yaml:7:"),
    ] {
        let problem = data(text).unwrap_err();
        assert!(problem.starts_with(wanted) && problem.contains("not YAML: "), "{text}: {problem}");
    }
    let problem = data("data: {{ .Values.a }}").unwrap_err();
    assert!(problem.ends_with("; a word is wanted (templates are not rendered here)"), "{problem}");
}

#[test]
fn what_is_no_object_is_said_where_it_stands() {
    let with = |metadata: &str| format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {metadata}\n");
    const DNS: &str = "at most 253 lower-case letters, digits, dashes and dots are wanted, with a letter or digit at both ends of each part";
    const LABEL: &str =
        "at most 63 lower-case letters, digits and dashes are wanted, with a letter or digit at both ends";
    let cut = format!("\"{}...\"", "a".repeat(60));
    for (text, wanted) in [
        ("12".to_owned(), &["1:1: a number; an object with apiVersion, kind and metadata is wanted"][..]),
        ("\n- a".to_owned(), &["2:1: a list; an object with apiVersion, kind and metadata is wanted"]),
        (
            "{}".to_owned(),
            &[
                "1:1: apiVersion: it is missing; text is wanted",
                "1:1: kind: it is missing; text is wanted",
                "1:1: metadata: it is missing; metadata.name is wanted",
            ],
        ),
        (
            "apiVersion: 1\nkind:\nmetadata: []".to_owned(),
            &[
                "1:13: apiVersion: a number; text is wanted: put it in quotes",
                "2:1: kind: it is missing; text is wanted",
                "3:11: metadata: a list; a mapping is wanted",
            ],
        ),
        (
            "a: 1\nkind: ''\n".to_owned() + "apiVersion: v1\nmetadata: {name: a}",
            &["2:7: kind: empty text; a word is wanted"],
        ),
        (with("{namespace: b}"), &["3:1: metadata.name: it is missing; text is wanted"]),
        (with("{name: 12}"), &["3:18: metadata.name: a number; text is wanted: put it in quotes"]),
        (with("{name: on}"), &["3:18: metadata.name: a boolean; text is wanted: put it in quotes"]),
        (with("{name: {}}"), &["3:12: metadata.name: a mapping; text is wanted"]),
        (
            with("{generateName: a-}"),
            &[
                "3:26: metadata.generateName: a name is wanted: with generateName every commit would make one more object",
            ],
        ),
        (
            with("{name: Web, namespace: a.b}"),
            &[
                &format!("3:18: metadata.name: \"Web\" is not legal; {DNS}"),
                &format!("3:34: metadata.namespace: \"a.b\" is not legal; {LABEL}"),
            ],
        ),
        (
            with(&format!("{{name: {}}}", "a".repeat(254))),
            &[&format!("3:18: metadata.name: {cut} is not legal; {DNS}")],
        ),
        (
            with("{name: a, namespace: [], labels: {a: 1}, annotations: [a]}"),
            &[
                "3:32: metadata.namespace: a list; text is wanted",
                "3:48: metadata.labels.a: a number; text is wanted: put it in quotes",
                "3:65: metadata.annotations: a list; a mapping is wanted",
            ],
        ),
        (
            "apiVersion: a/b/c\nkind: My Kind\nmetadata: {name: a/b}".to_owned(),
            &[
                "1:13: apiVersion: \"a/b/c\" is not legal; group/version, or v1, is wanted",
                "2:7: kind: this is not legal; a word such as Deployment is wanted",
                "3:18: metadata.name: \"a/b\" is not legal; at most 253 characters without blanks, slashes and percent signs are wanted",
            ],
        ),
        (
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}", "a".repeat(64)),
            &[&format!("3:18: metadata.name: {cut} is not legal; {LABEL}")],
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: Hidden}".to_owned(),
            &[&format!("3:18: metadata.name: this is not legal; {DNS}")],
        ),
        (
            "kind: List\nitems:\n- ~\n- 1\n- kind: List\n  items: 5\n".to_owned(),
            &[
                "3:3: nothing; an object with apiVersion, kind and metadata is wanted",
                "4:3: a number; an object with apiVersion, kind and metadata is wanted",
                "6:10: items is a number; a list of objects is wanted",
            ],
        ),
    ] {
        let wanted: Vec<_> = wanted.iter().map(|problem| format!("a.yaml:{problem}")).collect();
        assert_eq!(of(&text), (vec![], wanted), "{text}");
    }
}

#[test]
fn apis_and_names_are_as_legal_here_as_in_the_cluster() {
    for (api_version, name, legal) in [
        ("v1", "a", true),
        ("v1", "a.b-c.0", true),
        ("v1", "a_b", false),
        ("v1", "a..b", false),
        ("v1", "-a", false),
        ("v1beta1", "a", true),
        ("V1", "a", false),
        ("/v1", "a", false),
        ("a/", "a", false),
        ("A/v1", "a", false),
        ("example.com/v1", "a_B:c", true),
        ("example.com/v1", "..", false),
        ("example.com/v1", "a b", false),
        ("example.com/v1", "a%b", false),
        ("networking.k8s.io/v1", "2001:db8::1", true),
    ] {
        let text = format!("apiVersion: {api_version}\nkind: K\nmetadata: {{name: '{name}'}}");
        assert_eq!(of(&text).1.is_empty(), legal, "{text}");
    }
}

#[test]
fn broken_documents_and_files_hide_no_others() {
    let (mut objects, problems) = shown(&[
        file("1.yaml", format!("a: [\n---\n{}---\n\tb\n---\n{}", map("a"), map("b"))),
        file("2.yaml", [map("c").as_bytes(), b"---\na: \xff\n---\n", map("d").as_bytes()].concat()),
        file("3.yaml", b"\xff\xfea\0".to_vec()),
        file("4.json", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"e"}} x"#),
        file("5.json", "{\n  \"a\": 1,\n}}"),
        file("6\n.yaml", "kind: List\nitems: [1]"),
        file("7.yaml", map("f")),
    ]);
    objects.sort();
    let wanted = [
        "1 ConfigMap c",
        "1 ConfigMap e",
        "1 ConfigMap f",
        "10 ConfigMap b",
        "3 ConfigMap a",
        "8 ConfigMap d",
    ];
    assert_eq!(objects, texts(&wanted));
    let wanted = [
        "1.yaml:",
        "1.yaml:",
        "2.yaml:6:4: this is not UTF-8 text",
        "3.yaml:1:1: this is UTF-16 text",
        "4.json:1:64: not JSON: ",
        "5.json:3:1: not JSON: ",
        "6\u{fffd}.yaml:2:9: a number; ",
    ];
    assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
    for (problem, wanted) in problems.iter().zip(wanted) {
        assert!(problem.starts_with(wanted), "{problem} {wanted}");
    }
}

#[test]
fn the_first_of_two_objects_with_the_same_id_is_kept() {
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {second: ''}\n";
    let beta =
        |name: &str| format!("apiVersion: a.b/v1beta1\nkind: K\nmetadata: {{name: {name}, namespace: ns}}");
    let files = [
        file("1.yaml", format!("# a\n{}", map("a"))),
        file("2.yaml", format!("{}\n---\n{other}", beta("a"))),
        file("3.yaml", format!("{}\n---\n{}", beta("a").replace("beta1", ""), beta("b"))),
    ];
    let wanted = [
        "2.yaml:5:1: ConfigMap a is written twice, first in 1.yaml:2; that one is used",
        "3.yaml:1:1: a.b/K ns/a is written twice, first in 2.yaml:1; that one is used",
    ];
    let Read { objects, problems } = read(&files);
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), texts(&wanted));
    assert_eq!(objects[0].value.get("data"), None);
    assert_eq!(objects.len(), 3);
}

#[test]
fn what_a_commit_may_cost_is_bounded_and_said() {
    let many: String = (0..=OBJECTS).map(|at| format!("{}---\n", map(&format!("a{at}")))).collect();
    let list: String = (0..=OBJECTS)
        .map(|at| format!("- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: a{at}}}}}\n"))
        .collect();
    let bomb = |documents: usize| {
        let bomb = format!("data: [&a [{}], {}]\n", "x, ".repeat(1000), "*a, ".repeat(300));
        (0..documents).map(|at| format!("{}{bomb}---\n", map(&format!("a{at}")))).collect::<String>()
    };
    let after = "; nothing after this was read; split the project, or narrow its paths";
    for (text, objects, wanted) in [
        (many, OBJECTS, "a.yaml:50000:1: there are more than 10000 documents in the manifests"),
        (
            format!("kind: List\nitems:\n{list}"),
            OBJECTS,
            "a.yaml:10003:3: there are more than 10000 objects in the manifests",
        ),
        (bomb(10), 3, "a.yaml:19:1: there is too much content in the manifests with all aliases written out"),
    ] {
        let Read { objects: read, problems } = read(&[file("a.yaml", text), file("b.yaml", map("b"))]);
        assert_eq!(read.len(), objects);
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, [format!("{wanted}{after}")]);
    }
    let problems = read(&[file("a.yaml", "---\na\n".repeat(5000)), file("b.yaml", map("b"))]);
    assert_eq!((problems.objects.len(), problems.problems.len()), (0, PROBLEMS));
    let last = problems.problems[PROBLEMS - 1].to_string();
    assert!(last.ends_with("(this is problem 1000, and nothing after it was read)"), "{last}");
    let keys: String = (0..100).map(|at| format!("? [{at}]\n: 1\n")).collect();
    let (_, problems) = of(&keys);
    assert_eq!(problems.len(), DOCUMENT_PROBLEMS);
    assert!(
        problems[19].ends_with("; a word is wanted, and 80 more problems in this document"),
        "{problems:#?}"
    );
}

#[test]
fn hostile_files_cost_little_and_break_nothing() {
    for (name, text) in hostile() {
        let cost = Cost::begin();
        let _ = of(&text);
        let _ = shown(&[
            file("a.json", format!("{{{text}")),
            file("b.yaml", format!("{}data:\n {text}", map("a"))),
        ]);
        let took = cost.so_far();
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
    }
    let deep = |depth: usize| format!("{}data: {}{}", map("a"), "[".repeat(depth), "]".repeat(depth));
    assert_eq!(of(&deep(99)).1, texts(&[]));
    assert!(of(&deep(101)).1[0].contains("not YAML: "));
    for depth in [90, 5_000] {
        let text = format!(
            r#"{{"apiVersion":"v1","kind":"K","metadata":{{"name":"a"}},"a":"\ud83d\ude00","b":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        assert_eq!(of(&text).0.len(), usize::from(depth == 90), "{depth}");
    }
}

#[test]
fn random_files_break_nothing() {
    const PIECES: &[&str] = &[
        "apiVersion: v1",
        "apiVersion",
        "kind: ConfigMap",
        "kind: List",
        "kind",
        "metadata:\n  name: a",
        "items:",
        "name",
        "---\n",
        "...\n",
        "%",
        "\u{feff}",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\r\n",
        "\r",
        "\t",
        "&a ",
        "*a",
        "<<: ",
        "~",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "\\",
        "\\ud83d",
        "1",
        "0777",
        "1e9",
        ".nan",
        "yes",
        "!t ",
        "# c",
        "\0",
        "\u{85}",
        "\u{2028}",
        "é",
        "{\"apiVersion\":\"v1\",\"kind\":\"K\",\"metadata\":{\"name\":\"a\"}}",
        "{{ a }}",
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cost = Cost::begin();
    for _ in 0..5_000 {
        let length = random.random_range(0..50);
        let data: Vec<u8> = if random.random_bool(0.8) {
            (0..length).filter_map(|_| PIECES.choose(&mut random)).flat_map(|piece| piece.bytes()).collect()
        } else {
            (0..length * 4).map(|_| random.random()).collect()
        };
        let name = if random.random_bool(0.5) { "a.yaml" } else { "a.json" };
        let Read { objects, problems } = read(&[file(name, data.clone())]);
        let lines = data.len() + 1;
        assert!(objects.iter().all(|object| (1..=lines).contains(&object.line)), "seed {seed}: {data:?}");
        let placed = |problem: &Problem| (1..=lines).contains(&problem.line) && problem.column >= 1;
        assert!(problems.iter().all(placed), "seed {seed}: {data:?} {problems:?}");
        assert!(cost.so_far() < Duration::from_secs(60), "seed {seed}: {data:?}");
    }
}

#[test]
fn no_problem_tells_a_value_of_a_broken_secret() {
    const VALUE: &str = "Hunter2Hunter2";
    let secrets = [
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\nstringData:\n  a: {VALUE}\n  b: |\n    {VALUE}\n  c: \"{VALUE}\"\n"
        ),
        format!(
            r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"a"}},"stringData":{{"a":"{VALUE}"}}}}"#
        ),
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut broken, mut tries) = (0, 0);
    while broken < 2_000 && tries < 100_000 {
        tries += 1;
        let mut text: Vec<char> = secrets.choose(&mut random).unwrap().chars().collect();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..text.len());
            match random.random_range(0..3) {
                0 => _ = text.remove(at),
                1 => text.insert(
                    at,
                    *['&', '*', '!', ':', '\n', ' ', '\t', '{', '"', '<', '-'].choose(&mut random).unwrap(),
                ),
                _ => text[at] = *['&', '*', '!', ':', '\n', ' ', '|', '%', '@'].choose(&mut random).unwrap(),
            }
        }
        let text: String = text.into_iter().collect();
        let problems = read(&[file("a.json", text.clone())]).problems;
        broken += usize::from(!problems.is_empty());
        assert!(!format!("{problems:?}").contains("Hunter"), "seed {seed}: {text:?} {problems:?}");
    }
    for text in
        ["a: !Hunter2 x", "a: *Hunter2", "{Hunter2: 1, Hunter2: 2}", "<<: Hunter2", "Hunter2", "- Hunter2\nx"]
    {
        let problems = read(&[file("a.yaml", text)]).problems;
        assert!(!problems.is_empty() && !format!("{problems:?}").contains("Hunter"), "{text}: {problems:?}");
    }
}
