//! Hosts that give less, made on purpose: below the floor nothing is served, with one sentence that says why. Runs as
//! root on the host.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
#![allow(unsafe_code, reason = "a child process is changed before it becomes mainbox")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Server, mainbox, output};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::json;

/// Makes these system calls answer EPERM, once the child has become what `then` makes of it.
fn refuse(command: &mut Command, calls: &[i64], then: fn() -> nix::Result<()>) {
    let rules = calls.iter().map(|call| (*call, vec![])).collect::<BTreeMap<_, _>>();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    // SAFETY: the child is a copy of this thread alone; what it calls makes system calls only.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&filter).map_err(std::io::Error::other)?;
            Ok(then()?)
        });
    }
}

/// The binary in a world where these system calls answer EPERM.
fn without(calls: &[i64], settings: &[(&str, &str)]) -> Command {
    let mut command = mainbox(settings);
    refuse(&mut command, calls, || Ok(()));
    command
}

#[track_caller]
fn stops_with(command: &mut Command, error: &str) {
    assert_eq!(output(command), (Some(1), String::new(), format!("mainbox: {error}\n")));
}

#[test]
fn a_kernel_without_seccomp_is_below_the_default_floor() {
    stops_with(
        &mut without(&[libc::SYS_prctl, libc::SYS_seccomp], &[("MAINBOX_FLOOR", "seccomp")]),
        "MAINBOX_FLOOR is seccomp, but this host lacks the layer `no_new_privs`: Operation not permitted (os error 1)",
    );
    stops_with(
        &mut without(&[libc::SYS_seccomp], &[("MAINBOX_FLOOR", "seccomp")]),
        "MAINBOX_FLOOR is seccomp, but this host lacks the layer `seccomp`: Operation not permitted (os error 1)",
    );
}

#[test]
fn a_host_without_namespaces_is_below_that_floor() {
    let calls = [libc::SYS_unshare];
    stops_with(
        &mut without(&calls, &[("MAINBOX_FLOOR", "namespaces")]),
        "MAINBOX_FLOOR is namespaces, but this host lacks the layer `user namespace`: Operation not permitted (os error 1)",
    );
}

#[test]
fn binaries_that_can_be_read_are_below_the_tier_rlimits() {
    let folder = std::env::temp_dir().join(format!("mainbox-floor-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let binary = folder.join("mainbox");
    std::fs::copy(mainbox(&[]).get_program(), &binary).unwrap();
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let mut command = Command::new(&binary);
    command
        .env_clear()
        .env("PORT", "0")
        .env("MAINBOX_FLOOR", "rlimits")
        .env("MAINBOX_PYTHON", "/bin/sh");
    refuse(&mut command, &calls, || {
        nix::unistd::setgid(65534.into())?;
        nix::unistd::setuid(65534.into())
    });
    stops_with(
        &mut command,
        &format!(
            "MAINBOX_FLOOR is rlimits, but this host lacks the layer `unreadable binaries`: this user can read {}; install it owned by root with mode 0711",
            binary.display()
        ),
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_scratch_directory_that_cannot_be_made_is_named() {
    let (code, _, error) = output(mainbox(&[]).env("TMPDIR", "/nowhere"));
    assert_eq!(code, Some(1));
    let name = error
        .strip_prefix("mainbox: cannot create scratch directory /nowhere/mainbox-")
        .unwrap_or_else(|| panic!("{error}"));
    assert!(name.ends_with("-XXXXXX: No such file or directory (os error 2)\n"), "{error}");
}

#[test]
fn an_ordinary_user_gets_what_the_host_gives_to_users() {
    let folder = std::env::temp_dir().join(format!("mainbox-ordinary-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let binary = folder.join("mainbox");
    std::fs::copy(mainbox(&[]).get_program(), &binary).unwrap();
    let ordinary = |program: &std::ffi::OsStr| {
        let mut command = Command::new(program);
        command.uid(1000).gid(1000).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
        command
    };
    let mut unshare = ordinary("unshare".as_ref());
    let has_namespaces = output(unshare.args(["--user", "--map-root-user", "true"])).0 == Some(0);
    let mut doctor = ordinary(binary.as_os_str());
    // That of the system, since others may be root's alone.
    doctor.arg("doctor").env("MAINBOX_PYTHON", "/usr/bin/python3").env("MAINBOX_PRELOAD", "");
    let (code, text, error) = output(&mut doctor);
    std::fs::remove_dir_all(&folder).unwrap();
    let tier = if has_namespaces { "namespaces" } else { "seccomp" };
    assert!(text.contains(&format!("isolation  {tier}\n")), "{text}{error}");
    assert_eq!((code, text.contains("  BAD  ")), (Some(0), false), "{text}{error}");
}

#[test]
fn where_no_other_uid_is_mapped_workers_get_user_namespaces_instead() {
    let server_binary = mainbox(&[]).get_program().to_owned();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(server_binary).arg("doctor");
    command.env("MAINBOX_PRELOAD", "").env("MAINBOX_FLOOR", "namespaces");
    let (code, text, error) = output(&mut command);
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(
        text.contains(
            "no   own uid per worker: the user namespace of the zygotes maps only one uid"
        ),
        "{text}"
    );
}

#[test]
fn the_floor_none_serves_and_says_so() {
    let (code, text, error) = output(
        without(
            &[libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare],
            &[("MAINBOX_FLOOR", "none"), ("MAINBOX_PRELOAD", "")],
        )
        .arg("doctor"),
    );
    assert!(text.contains("isolation  none"), "{text}{error}");
    assert_eq!(code, Some(0), "{text}{error}");
}

#[test]
fn without_a_floor_every_answer_carries_a_warning() {
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let settings = [("MAINBOX_FLOOR", "none"), ("MAINBOX_PRELOAD", ""), ("PORT", "0")];
    let unsandboxed = Server::direct(&mut without(&calls, &settings));
    let sandboxed = Server::direct(&mut mainbox(&settings));
    for (server, isolation, warning) in [
        (
            unsandboxed,
            "none",
            "No sandbox is in force: the script had the rights of the service. MAINBOX_FLOOR=none is for development",
        ),
        (
            sandboxed,
            "namespaces",
            "MAINBOX_FLOOR=none is for development: scripts would run without a sandbox too. One is in force now",
        ),
    ] {
        let answer = server.run("def main(): return 1");
        assert_eq!(answer.header("mainbox-isolation"), isolation);
        assert_eq!(answer.json(), json!({"result": 1, "stdout": "", "warning": warning}));
        for script in ["def main(): raise ValueError", "x = 1", ""] {
            assert_eq!(server.run(script).json()["warning"], warning, "{script}");
        }
    }
}

#[test]
fn links_and_pipes_in_outputs_are_left_there_even_without_a_sandbox() {
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let settings = [("MAINBOX_FLOOR", "none"), ("MAINBOX_PRELOAD", ""), ("PORT", "0")];
    let server = Server::direct(&mut without(&calls, &settings));
    let script = "import os, socket\ndef main():\n    os.symlink('/etc/passwd', 'outputs/link')\n    \
        os.symlink('/etc', 'outputs/folder')\n    os.mkfifo('outputs/pipe')\n    os.mkdir('outputs/real')\n    \
        os.symlink('../..', 'outputs/real/up')\n    open('outputs/real/file', 'w').write('mine')\n    \
        return sorted(os.listdir('outputs'))";
    let answer = server.run(script).json();
    assert_eq!(answer["result"], json!(["folder", "link", "pipe", "real"]));
    assert_eq!(answer["files"], json!({"real/file": "mine"}));
    let script =
        "import os\ndef main(): os.rmdir('outputs'); os.symlink('/etc', 'outputs'); return 1";
    let answer = server.run(script).json();
    assert_eq!((&answer["result"], &answer["files"]), (&json!(1), &json!(null)));
}

#[test]
fn workers_that_cannot_lock_themselves_down_are_never_given_a_request() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(server.run("def main(): return 1").status, 200);
    // The mount point of scratch directories goes away: every further worker fails at that step.
    for root in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if root.file_name().to_string_lossy().starts_with(&format!("mainbox-{}-", server.pid())) {
            std::fs::remove_dir(root.path().join("box/scratch")).unwrap();
        }
    }
    let started = Instant::now();
    let answer = loop {
        let answer = server.run("def main(): return 1");
        if answer.status != 200 {
            break answer;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "workers are still locked down");
    };
    assert_eq!(
        answer.failure(),
        (
            500,
            String::from("internal"),
            String::from("Workers cannot be started; the service's log says why")
        )
    );
    server.log_line("lockdown failed at mount: FileNotFoundError: [Errno 2]", 1);
    let health = server.get("/health");
    assert_eq!(health.status, 503);
    assert_eq!(
        health.json(),
        json!({"status": "unhealthy", "error": "workers cannot be started; the log says why"})
    );
}
