//! The offenders without the sandbox: each must succeed in a plain interpreter, or its test would prove nothing.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use std::process::Command;

use common::offender::Offender;

#[test]
fn every_offence_succeeds_without_the_sandbox() {
    let port = common::server().port();
    let python = std::env::var("MAINBOX_PYTHON").unwrap_or(String::from(".venv/bin/python3"));
    let python = std::path::absolute(python).unwrap();
    let folder = std::env::temp_dir().join(format!("mainbox-bites-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let failures: Vec<String> = Offender::all()
        .iter()
        .filter(|offender| offender.bites)
        .filter_map(|offender| {
            let script = format!("{}\nprint(main()['offence'])", offender.script(port));
            let mut command = Command::new(&python);
            let output = command.args(["-c", &script]).current_dir(&folder).output().unwrap();
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            let did = answer.lines().any(|line| line.starts_with("did: "));
            (!did).then(|| {
                format!("{}: {answer}{}", offender.name, String::from_utf8_lossy(&output.stderr))
            })
        })
        .collect();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}
