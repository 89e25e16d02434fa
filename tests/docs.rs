//! The README is true: its tables are the code's, its commands do what it says.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use std::process::Command;

use mainbox::api::Kind;
use mainbox::config::VARIABLES;

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

/// The rows of the table whose header starts with `header`, cell by cell.
fn table(header: &str) -> Vec<Vec<String>> {
    let readme = readme();
    let rows: Vec<Vec<String>> = readme
        .lines()
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {header}");
    rows
}

#[test]
fn the_configuration_table_is_the_codes() {
    let code: Vec<Vec<String>> = VARIABLES
        .iter()
        .map(|row| vec![format!("`{}`", row.name), row.default.to_owned(), row.meaning.to_owned()])
        .collect();
    assert_eq!(table("| name | default |"), code);
}

#[test]
fn the_table_of_kinds_is_the_codes() {
    let readme: Vec<(String, String)> = table("| kind | status |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let code: Vec<(String, String)> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let name = serde_json::to_string(&kind).unwrap().replace('"', "`");
            (name, kind.status().as_u16().to_string())
        })
        .collect();
    assert_eq!(readme, code);
}

#[test]
fn every_curl_answers_what_the_readme_says() {
    let readme = readme();
    let url = &common::server().url;
    let mut curls = 0;
    let mut lines = readme.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("$ curl ") else { continue };
        let expected = *lines.peek().unwrap();
        let command = format!("curl {}", command.replace("localhost:8080", url));
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        match expected.strip_suffix("...") {
            Some(beginning) => assert!(answer.starts_with(beginning), "{command}: {answer}"),
            None => assert_eq!(answer, expected, "{command}"),
        }
        curls += 1;
    }
    assert_eq!(curls, 6);
}
