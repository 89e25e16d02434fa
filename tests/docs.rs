//! The README is true: its tables are the code's, its commands do what it says.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use std::process::Command;

use common::offender::Offender;
use mainbox::api::catalogue::Kind;
use mainbox::config::Config;
use mainbox::config::choices::Platform;
use mainbox::config::settings::SETTINGS;

fn document(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The rows of the table of a document whose header starts with `header`, cell by cell.
fn table(name: &str, header: &str) -> Vec<Vec<String>> {
    let document = document(name);
    let rows: Vec<Vec<String>> = document
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
    let code: Vec<Vec<String>> = SETTINGS
        .iter()
        .map(|row| {
            let name = format!("`{}`", row.name);
            vec![name, row.default_text(), row.accepts(), row.meaning.to_owned()]
        })
        .collect();
    assert_eq!(table("docs/configuration.md", "| name | default |"), code);
}

#[test]
fn the_table_of_kinds_is_the_codes() {
    let readme: Vec<(String, String)> = table("README.md", "| kind | status |")
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
fn the_table_of_promises_is_that_of_the_offenders() {
    const WORLDS: [&str; 4] = ["namespaces", "landlock", "seccomp", "rlimits"];
    let mut promise = 0;
    let mut promised: Vec<(String, u8, Vec<bool>)> = Vec::new();
    for row in table("SECURITY.md", "| attempt | namespaces |") {
        if let Some(title) = row[0].strip_prefix("**") {
            promise = title.split('.').next().unwrap().parse().unwrap();
            continue;
        }
        assert!(row[1..].iter().all(|cell| cell == "held" || cell.starts_with("not ")), "{row:?}");
        let held = row[1..].iter().map(|cell| cell == "held").collect();
        promised.push((row[0].trim_matches('`').to_owned(), promise, held));
    }
    promised.sort();
    let offenders: Vec<(String, u8, Vec<bool>)> = Offender::all()
        .into_iter()
        .map(|offender| {
            let held =
                WORLDS.map(|world| offender.worlds.iter().any(|name| name == world)).to_vec();
            (offender.name, offender.promise, held)
        })
        .collect();
    assert_eq!(promised, offenders);
}

#[test]
fn every_curl_answers_what_the_readme_says() {
    let readme = document("README.md");
    let url = &common::server().url;
    let folder = std::env::temp_dir().join(format!("mainbox-readme-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let mut curls = 0;
    let mut lines = readme.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("$ cat ") {
            let mut content = String::new();
            while !lines.peek().unwrap().starts_with("$ ") {
                content += &format!("{}\n", lines.next().unwrap());
            }
            std::fs::write(folder.join(name), content).unwrap();
        }
        let Some(command) = line.strip_prefix("$ curl ") else { continue };
        let expected = *lines.peek().unwrap();
        let command = format!("curl {}", command.replace("localhost:8080", url));
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &command]).current_dir(&folder).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        match expected.strip_suffix("...") {
            Some(beginning) => assert!(answer.starts_with(beginning), "{command}: {answer}"),
            None => assert_eq!(answer, expected, "{command}"),
        }
        curls += 1;
    }
    assert_eq!(curls, 8);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_python_of_the_readme_runs_a_script() {
    let readme = document("README.md");
    let snippet = readme.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(snippet.lines().count(), 5);
    let snippet = snippet.replace("http://localhost:8080", &common::server().url);
    let call = "print(execute('def main(x): return x * 2', input=21))";
    let mut python = Command::new("python3");
    let output = common::output(python.args(["-c", &format!("{snippet}\n{call}")]));
    assert_eq!(output, (Some(0), String::from("42\n"), String::new()));
}

#[test]
fn settings_that_behave_like_other_services_are_settings() {
    let mut rows = 0;
    for row in table("docs/compatibility.md", "| set up as | settings |") {
        let settings = row[1].split('`').nth(1).unwrap();
        let variables = settings.split(' ').map(|setting| {
            let (name, value) = setting.split_once('=').unwrap();
            (name.to_owned(), value.replace("...", "0123456789abcdef"))
        });
        Config::from_variables(&variables.collect(), Platform::Elsewhere).unwrap();
        rows += 1;
    }
    assert_eq!(rows, 9);
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let documents = [
        "README.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/deploy.md",
        "docs/compatibility.md",
        "docs/reliability.md",
        "docs/benchmarks.md",
    ];
    for name in documents {
        let folder = std::path::Path::new(name).parent().unwrap().to_owned();
        let text = document(name);
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.starts_with("http")) {
            assert!(folder.join(link).exists(), "{name}: {link}");
        }
    }
}

#[test]
fn the_function_outlives_the_longest_script_and_may_do_nothing_but_log() {
    let template = document("template.yaml");
    let timeouts: Vec<(u32, u32)> = template
        .lines()
        .filter_map(|line| line.trim().strip_suffix('}')?.split_once(": {Timeout: "))
        .map(|(script, function)| {
            (script.trim_matches('"').parse().unwrap(), function.parse().unwrap())
        })
        .collect();
    assert_eq!(timeouts, [(3, 23), (10, 30), (30, 50), (60, 80), (300, 320)]);
    assert!(template.contains("\n      Policies: []\n"));
    assert!(!template.contains("Role:") && template.contains("Default: AWS_IAM\n"));
}

#[test]
fn the_service_outlives_its_scripts_and_has_memory_for_them() {
    let service = document("service.yaml");
    let value = |name: &str| -> u64 {
        let after = service.split_once(name).unwrap().1;
        let digits = after.trim_start_matches([' ', '"', ':', '\n']);
        let digits = digits.trim_start_matches("value: \"");
        digits.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert!(value("timeoutSeconds:") > value("MAINBOX_TIMEOUT_SECONDS\n") + 10);
    let (cpus, memory) = (value("cpu:"), value("memory:") * 1024);
    assert!(memory > cpus * (value("MAINBOX_MEMORY_MB\n") + 64) + 300);
    assert_eq!(value("containerConcurrency:"), 2 * cpus);
}
