//! The table of mistakes in docs/policies.md: each message is produced from files that have that mistake, and is the only
//! one. A mistake without a row fails here as much as a row without a mistake.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

#[path = "mistakes/files.rs"]
mod files;

use files::{Files, mistakes};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The rows between the two marks, mistake and message.
fn rows() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("\n## Mistakes\n").expect("the page has a chapter of mistakes");
    let table = table.split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.filter_map(|row| row.split_once(" | "));
    let code = |text: &str| text.trim_matches('`').trim().to_owned();
    rows.filter(|(_, message)| message.starts_with('`'))
        .map(|(mistake, message)| (mistake.to_owned(), code(message)))
        .collect()
}

/// What is said of a directory with these files, without its name.
fn message(files: &Files) -> String {
    let directory = tempfile::tempdir().unwrap();
    let place = files.lay(directory.path());
    let problems = match postern_policies::load_dir(&place) {
        Err(problems) => problems.to_string(),
        Ok(_) => panic!("nothing is wrong with it"),
    };
    let root = format!("{}/", directory.path().display());
    problems.replace(&root, "").replace(&directory.path().display().to_string(), "policies")
}

#[test]
fn every_message_of_the_table_comes_from_files_that_have_the_mistake() {
    let rows = rows();
    let known: BTreeMap<&str, &str> =
        rows.iter().map(|(mistake, message)| (mistake.as_str(), message.as_str())).collect();
    assert_eq!(known.len(), rows.len(), "a row is written twice");
    let mut table = String::new();
    let mut wrong = Vec::new();
    for (mistake, files) in mistakes() {
        let message = message(&files);
        if known.get(mistake) != Some(&&*message) {
            wrong.push(mistake);
        }
        let ticks = if message.contains('`') { "`` " } else { "`" };
        table += &format!("| {mistake} | {ticks}{message}{} |\n", ticks.chars().rev().collect::<String>());
    }
    let made: Vec<&str> = mistakes().iter().map(|(mistake, _)| *mistake).collect();
    let order: Vec<&str> = rows.iter().map(|(mistake, _)| mistake.as_str()).collect();
    assert!(wrong.is_empty() && made == order, "wrong: {wrong:?}; the table should be\n{table}");
}
