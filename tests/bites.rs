//! Each offence must succeed in a plain interpreter. Otherwise its test in the sandbox proves nothing.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use std::process::Command;

use common::offender::Offender;
use common::{is_root, not_run};

#[test]
fn every_offence_succeeds_without_the_sandbox() {
    let port = common::server().port();
    let python = std::path::absolute(common::python()).unwrap();
    let folder = std::env::temp_dir().join(format!("mainbox-bites-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let offenders = Offender::all();
    let (mut failures, mut need_root) = (Vec::new(), Vec::new());
    for offender in offenders.iter().filter(|offender| offender.bites) {
        let script = format!("{}\nprint(main()['offence'])", offender.script(port));
        let mut command = Command::new(&python);
        let output = command.args(["-c", &script]).current_dir(&folder).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.lines().any(|line| line.starts_with("did: ")) {
            continue;
        }
        if !is_root() && answer.starts_with("refused: PermissionError: ") {
            need_root.push(offender.name.as_str());
            continue;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        failures.push(format!("{}: {answer}{error}", offender.name));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    if !need_root.is_empty() {
        not_run(&format!("only root succeeds outside the sandbox with {}", need_root.join(", ")));
    }
}
