//! The documents match the code: their tables are the tables of the code, and their commands do what they say.
#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::offender::Offender;
use mainbox::api::catalogue::Kind;
use mainbox::config::Config;
use mainbox::config::choices::Platform;
use mainbox::config::settings::SETTINGS;

/// Every document.
const DOCUMENTS: [&str; 15] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/agents.md",
    "docs/api.md",
    "docs/benchmarks.md",
    "docs/benchmarks/notes.md",
    "docs/compatibility.md",
    "docs/configuration.md",
    "docs/deploy.md",
    "docs/python.md",
    "docs/reliability.md",
    "docs/scaling.md",
];

/// The longest line of prose, columns.
const MAX_COLUMNS: usize = 120;

fn document(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns the cells of the table whose header starts with `header`, row by row.
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
fn the_registry_entry_has_the_version_and_the_name_of_the_image() {
    let entry: serde_json::Value = serde_json::from_str(&document("server.json")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(entry["version"], version);
    let image = entry["packages"][0]["identifier"].as_str().unwrap();
    assert_eq!(image.rsplit(':').next(), Some(version));
    let label = format!("LABEL io.modelcontextprotocol.server.name={}\n", entry["name"]);
    assert!(document("Dockerfile.cloudrun").contains(&label), "{label}");
    // The registry refuses a longer one.
    assert!(entry["description"].as_str().unwrap().len() <= 100);
}

#[test]
fn the_table_of_settings_matches_the_code() {
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
fn the_table_of_errors_matches_the_code() {
    let documented: Vec<(String, String)> = table("docs/api.md", "| kind | status |")
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
    assert_eq!(documented, code);
}

#[test]
fn the_table_of_promises_matches_the_offenders() {
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

/// Runs every curl of a document and compares its output with the next lines. Returns how many there are.
fn run_curls(name: &str) -> usize {
    let document = document(name);
    let url = &common::server().url;
    let folder = std::env::temp_dir().join(format!(
        "mainbox-{}-{}",
        name.replace('/', "-"),
        std::process::id()
    ));
    std::fs::create_dir(&folder).unwrap();
    let mut curls = 0;
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(file) = line.strip_prefix("$ cat ") {
            let mut content = String::new();
            while !lines.peek().unwrap().starts_with("$ ") {
                content += &format!("{}\n", lines.next().unwrap());
            }
            std::fs::write(folder.join(file), content).unwrap();
        }
        let Some(command) = line.strip_prefix("$ curl ") else { continue };
        let mut expected = vec![];
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ") && *line != "```") {
            expected.push(line);
        }
        let expected = expected.join("\n");
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
    std::fs::remove_dir_all(folder).unwrap();
    curls
}

#[test]
fn every_curl_prints_what_its_document_says() {
    assert_eq!(run_curls("README.md"), 4);
    assert_eq!(run_curls("docs/api.md"), 10);
}

/// Runs the Python blocks of a document as one program, with the package of this clone. Returns what it prints.
fn run_python(name: &str) -> String {
    let document = document(name);
    let blocks: Vec<&str> = document
        .split("```python\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let package = concat!(env!("CARGO_MANIFEST_DIR"), "/python");
    // The package looks for its command beside the interpreter, and then on PATH.
    let path = format!("{}:/usr/bin:/bin", common::binary().parent().unwrap().display());
    let mut python = Command::new(common::python());
    python.args(["-B", "-c", &blocks.concat()]).env("PYTHONPATH", package).env("PATH", path);
    let (code, text, error) = common::output(&mut python);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{name}: {text}");
    text
}

#[test]
fn the_python_examples_do_what_they_say() {
    assert_eq!(run_python("README.md"), "{'a': 3}\n");
    assert_eq!(
        run_python("docs/python.md"),
        "42 working\n\nexception 1 ZeroDivisionError: division by zero\n6\n3\nexception\n\
         [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n"
    );
}

/// A number of the stored benchmark.
fn stored(what: &str, field: &str) -> f64 {
    let stored: serde_json::Value =
        serde_json::from_str(&document("docs/benchmarks/host.json")).unwrap();
    let rows = stored["rows"].as_array().unwrap();
    rows.iter().find(|row| row["what"] == what).unwrap()[field].as_f64().unwrap()
}

#[test]
fn the_scripts_a_cpu_runs_are_those_of_the_stored_benchmark() {
    let rows = [("trivial", "trivial"), ("a sum with pandas", "pandas")].map(|(script, name)| {
        let a_cpu = stored(&format!("{name}, requests per second, 8 clients"), "value") / 2.0;
        vec![script.to_owned(), format!("{a_cpu:.0}"), format!("{:.1} ms", 1000.0 / a_cpu)]
    });
    assert_eq!(table("docs/scaling.md", "| script | requests per second and CPU"), rows);
}

#[test]
fn the_readme_has_the_figures_of_the_stored_benchmark() {
    let readme = document("README.md").replace('\n', " ");
    for figure in [
        format!("a trivial script takes {:.1} ms", stored("trivial, p50", "value")),
        format!("compared with {:.1} ms to start", stored("trivial, p50", "yardstick_value")),
        format!("with pandas takes {:.1} ms", stored("pandas sum of 3 rows, p50", "value")),
        format!("with {:.0} ms for", stored("pandas sum of 3 rows, p50", "yardstick_value")),
        format!("pandas worker uses {:.0} MB", stored("each additional pandas worker", "value")),
        format!(
            "get {:.0} trivial or {:.0} pandas responses",
            stored("trivial, requests per second, 8 clients", "value"),
            stored("pandas, requests per second, 8 clients", "value")
        ),
    ] {
        assert!(readme.contains(&figure), "{figure}");
    }
}

#[test]
fn the_readme_is_short() {
    let lines = document("README.md").lines().count();
    assert!(lines <= 160, "{lines} lines");
}

#[test]
fn no_line_of_prose_is_too_long() {
    for name in DOCUMENTS {
        for (number, line) in prose(&document(name)) {
            let columns = without_link_targets(line).chars().count();
            assert!(columns <= MAX_COLUMNS, "{name}:{number} has {columns} columns");
        }
    }
}

/// Returns the lines that are neither in a code block nor in a table, numbered from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = vec![];
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code && !line.starts_with('|') {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// Removes the targets of Markdown links, which cannot be wrapped.
fn without_link_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or(part, |(_, rest)| rest))
}

#[test]
fn the_table_of_absences_matches_the_list_of_tests() {
    let list = document("tests/cpython/namespaces-3.11.txt");
    let counted: Vec<Vec<String>> = list
        .split("\n# ")
        .skip(1)
        .map(|part| {
            let (absence, tests) = part.split_once('\n').unwrap();
            let count = tests.lines().filter(|line| !line.is_empty()).count();
            vec![absence.to_owned(), count.to_string()]
        })
        .collect();
    let rows = table("docs/compatibility.md", "| what the sandbox does not have |");
    assert_eq!(rows, counted);
    let total: usize = rows.iter().map(|row| row[1].parse::<usize>().unwrap()).sum();
    for name in ["README.md", "docs/compatibility.md"] {
        assert!(document(name).contains(&format!("{total} ")), "{name} does not say {total}");
    }
}

#[test]
fn the_settings_of_the_compatibility_table_are_accepted() {
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
fn every_link_of_a_document_leads_to_a_file_and_to_a_heading() {
    for name in DOCUMENTS {
        let folder = std::path::Path::new(name).parent().unwrap().to_owned();
        let text = document(name);
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path =
                if file.is_empty() { std::path::PathBuf::from(name) } else { folder.join(file) };
            assert!(path.exists(), "{name}: {link}");
            let target = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(anchor.is_empty() || anchors(&target).contains(anchor), "{name}: {link}");
        }
    }
}

/// Returns the anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            title.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-').collect()
        })
        .collect()
}

#[test]
fn the_lambda_function_outlives_its_longest_script_and_may_only_write_logs() {
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
fn a_pod_answers_its_requests_before_it_ends_and_has_memory_for_its_scripts() {
    let deployment = document("deploy/kubernetes/base/deployment.yaml");
    let value = |name: &str| -> u64 {
        let after = deployment.split_once(name).unwrap().1;
        let digits = after.trim_start().trim_start_matches("value:").trim_start_matches([' ', '"']);
        digits.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    // The time in which the service answers what was sent is in docs/deploy.md.
    assert!(document("docs/deploy.md").contains("for at most 8 seconds"));
    assert!(value("terminationGracePeriodSeconds:") >= value(" seconds:") + 8 + 2);
    let scripts = value("MAINBOX_CONCURRENCY\n");
    assert!(value("memory:") * 1024 > scripts * (value("MAINBOX_MEMORY_MB\n") + 64) + 300);
    assert!(value("sizeLimit:") >= scripts * 64 + 16);
    assert!(value("cpu:") >= scripts);
}

#[test]
fn the_cloud_run_service_outlives_its_scripts_and_has_memory_for_them() {
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
