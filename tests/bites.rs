//! Each offence must succeed in a plain interpreter. Otherwise its test in the sandbox proves nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::offender::Offender;
use common::{declared_tier, is_root, not_run};

/// Offences that only root can commit in a plain interpreter. Some need it only where the interpreter is root's.
const NEED_ROOT: [&str; 12] = [
    "becomes_root",
    "changes_the_mode_of_a_library",
    "changes_the_mode_of_a_library_through_a_descriptor",
    "changes_the_times_of_a_library",
    "truncates_a_library",
    "changes_its_root",
    "hardlinks_a_library_into_its_directory",
    "joins_a_namespace",
    "creates_a_device_node",
    "mounts_a_file_system",
    "overwrites_a_library",
    "poisons_the_bytecode_of_a_library",
];
/// Offences that need a host where this user can create namespaces.
const NEED_NAMESPACES: [&str; 1] = ["enters_a_new_namespace"];

#[test]
fn every_offence_succeeds_without_the_sandbox() {
    let port = common::server().port();
    let python = std::path::absolute(common::python()).unwrap();
    let folder = std::env::temp_dir().join(format!("mainbox-bites-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let offenders = Offender::all();
    let (mut failures, mut missing) = (Vec::new(), Vec::new());
    for offender in offenders.iter().filter(|offender| offender.bites) {
        let script = format!("{}\nprint(main()['offence'])", offender.script(port));
        let mut command = Command::new(&python);
        let output = command.args(["-c", &script]).current_dir(&folder).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.lines().any(|line| line.starts_with("did: ")) {
            continue;
        }
        let needs_root = !is_root() && NEED_ROOT.contains(&offender.name.as_str());
        let needs_namespaces = NEED_NAMESPACES.contains(&offender.name.as_str());
        if needs_root || (needs_namespaces && declared_tier() != "namespaces") {
            missing.push(offender.name.as_str());
            continue;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        failures.push(format!("{}: {answer}{error}", offender.name));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    if !missing.is_empty() {
        not_run(&format!(
            "this user cannot do this outside the sandbox either: {}",
            missing.join(", ")
        ));
    }
}
