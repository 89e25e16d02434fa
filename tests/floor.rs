//! Hosts with less isolation, which these tests simulate: below the floor the server does not start, and says why in one
//! sentence.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a child process gets a filter before it executes mainbox")]

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    Server, binary, children, declared_tier, is_root, mainbox, not_run, output, python,
    scratch_roots, settled_children, status,
};
use indoc::{formatdoc, indoc};
use mainbox::sandbox::sys;
use serde_json::json;

/// Makes these system calls fail with EPERM in the child, which then runs `then`. Without seccomp(2), no filter can be
/// installed by prctl(2) either.
fn refuse(command: &mut Command, calls: &[i64], then: fn() -> nix::Result<()>) {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (load, jump_if_equal, returns) = (0x20, 0x15, 0x06);
    let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = vec![step(load, 0, 0, 0)];
    for call in calls {
        filter.extend([step(jump_if_equal, 0, 1, *call as u32), step(returns, 0, 0, eperm)]);
    }
    if calls.contains(&libc::SYS_seccomp) {
        filter.extend([
            step(jump_if_equal, 0, 3, libc::SYS_prctl as u32),
            step(load, 0, 0, 16), // the lower half of the first argument
            step(jump_if_equal, 0, 1, libc::PR_SET_SECCOMP as u32),
            step(returns, 0, 0, eperm),
        ]);
    }
    filter.push(step(returns, 0, 0, libc::SECCOMP_RET_ALLOW));
    // SAFETY: between fork and exec, the child only makes system calls.
    unsafe {
        command.pre_exec(move || {
            sys::set_no_new_privileges()?;
            sys::install_filter(&filter)?;
            Ok(then()?)
        });
    }
}

/// Returns a command whose process fails these system calls with EPERM.
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
fn the_tier_rlimits_needs_binaries_that_the_user_cannot_read() {
    let folder = std::env::temp_dir().join(format!("mainbox-floor-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let binary = folder.join("mainbox");
    std::fs::copy(common::binary(), &binary).unwrap();
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let mut command = Command::new(&binary);
    command
        .env_clear()
        .env("PORT", "0")
        .env("MAINBOX_FLOOR", "rlimits")
        .env("MAINBOX_PYTHON", "/bin/sh");
    // Root can read every file.
    refuse(&mut command, &calls, || {
        if !is_root() {
            return Ok(());
        }
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
fn the_error_names_a_scratch_directory_that_cannot_be_created() {
    let (code, _, error) = output(mainbox(&[]).env("TMPDIR", "/nowhere"));
    assert_eq!(code, Some(1));
    let name = error
        .strip_prefix("mainbox: cannot create scratch directory /nowhere/mainbox-")
        .unwrap_or_else(|| panic!("{error}"));
    assert!(name.ends_with("-XXXXXX: No such file or directory (os error 2)\n"), "{error}");
}

/// Returns whether this command of an ordinary user can create a user namespace.
fn can_unshare(mut unshare: Command) -> bool {
    output(unshare.args(["--user", "--map-root-user", "true"])).0 == Some(0)
}

#[test]
fn an_ordinary_user_gets_namespaces_or_else_seccomp() {
    let folder = std::env::temp_dir().join(format!("mainbox-ordinary-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let copy = folder.join("mainbox");
    std::fs::copy(binary(), &copy).unwrap();
    let ordinary = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
        if is_root() {
            command.uid(1000).gid(1000);
        }
        command
    };
    // The home directory of root may hide the interpreter of the tests from other users.
    let version = "import sys; sys.exit(sys.version_info < (3, 11))";
    let runs = |python: &&str| {
        let found = ordinary(python).args(["-c", version]).output();
        found.is_ok_and(|found| found.status.success())
    };
    let own = python();
    let Some(python) = [own.as_str(), "/usr/bin/python3"].into_iter().find(runs) else {
        std::fs::remove_dir_all(&folder).unwrap();
        return not_run("no Python 3.11 that every user can run");
    };
    let mut doctor = ordinary(copy.to_str().unwrap());
    doctor.arg("doctor").env("MAINBOX_PYTHON", python).env("MAINBOX_PRELOAD", "");
    let (code, text, error) = output(&mut doctor);
    std::fs::remove_dir_all(&folder).unwrap();
    let tier = if can_unshare(ordinary("unshare")) { "namespaces" } else { "seccomp" };
    assert!(text.contains(&format!("isolation  {tier}\n")), "{text}{error}");
    assert_eq!((code, text.contains("  BAD  ")), (Some(0), false), "{text}{error}");
}

#[test]
fn a_zygote_inherits_no_descriptor_and_no_signal_setting() {
    let server = mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "1")]);
    // A kernel before 5.9 has no close_range(2).
    for missing in [&[][..], &[libc::SYS_close_range]] {
        let mut command = Command::new(python());
        command.args(["-c", INHERITS]).arg(server.get_program());
        command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(std::process::Stdio::null());
        refuse(&mut command, missing, || Ok(()));
        inherits_nothing(&Server::direct(&mut command));
    }
}

/// Checks the zygote of a server that has inherited the settings of [`INHERITS`].
fn inherits_nothing(server: &Server) {
    server.wait_for_metric("mainbox_spares{zygote=\"bare\"} 1");
    let usr1_and_usr2 = (1 << (libc::SIGUSR1 - 1)) | (1 << (libc::SIGUSR2 - 1));
    let signals = |process, field| u64::from_str_radix(&status(process, field), 16).unwrap();
    assert_eq!(signals(server.pid(), "SigBlk") & usr1_and_usr2, usr1_and_usr2);
    let zygote = children(server.pid())[0];
    // It blocks all signals that can be blocked, but its workers block none.
    let cannot_be_blocked = (1 << (libc::SIGKILL - 1)) | (1 << (libc::SIGSTOP - 1));
    assert_eq!(signals(zygote, "SigBlk"), !cannot_be_blocked);
    for worker in settled_children(zygote, 1) {
        assert_eq!(
            (signals(worker, "SigBlk"), signals(worker, "SigIgn")),
            (0, signals(zygote, "SigIgn"))
        );
    }
    assert_eq!(signals(zygote, "SigIgn") & usr1_and_usr2, 0);
    let directory = format!("/proc/{zygote}/fd");
    if std::fs::read_dir(&directory).is_err() {
        return not_run("only root may count the descriptors of a zygote");
    }
    let inherited = format!("/proc/{}/fd/5000", server.pid());
    // Others cannot see the descriptors of the supervisor.
    assert!(!is_root() || std::fs::metadata(inherited).is_ok(), "the test opens descriptor 5000");
    let most = || {
        let numbers = std::fs::read_dir(&directory).unwrap();
        numbers
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap())
            .max()
    };
    // 0 to 3, and that of ended workers. It opens others only for moments, for modules that it imports when it is idle.
    let deadline = Instant::now() + Duration::from_secs(5);
    while most() != Some(4) {
        assert!(Instant::now() < deadline, "{:?}", most());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Python would note the signal, and each worker would act on it.
#[test]
fn a_signal_to_a_zygote_reaches_no_worker() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    for _ in 0..6 {
        for zygote in children(server.pid()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(zygote), nix::sys::signal::SIGINT)
                .unwrap();
        }
        assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    }
}

/// Runs its argument with a descriptor above 1024, two blocked signals, one of them ignored.
const INHERITS: &str = indoc! {r#"
    import os, resource, signal, sys
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (5001, most))
    os.dup2(os.open("/", os.O_RDONLY), 5000)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.execv(sys.argv[1], sys.argv[1:])
"#};

#[test]
fn workers_get_user_namespaces_where_no_other_uid_is_mapped() {
    if !can_unshare(Command::new("unshare")) {
        return not_run("this user cannot create user namespaces");
    }
    let doctor = mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_FLOOR", "namespaces")]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(doctor.get_program()).arg("doctor");
    command.envs(doctor.get_envs().filter_map(|(name, value)| Some((name, value?))));
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
fn the_floor_none_allows_a_host_without_isolation() {
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
fn without_a_floor_every_response_contains_a_warning() {
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let settings = [("MAINBOX_FLOOR", "none"), ("MAINBOX_PRELOAD", ""), ("PORT", "0")];
    let unsandboxed = Server::direct(&mut without(&calls, &settings));
    let sandboxed = Server::direct(&mut mainbox(&settings));
    for (server, isolation, warning) in [
        (
            unsandboxed,
            String::from("none"),
            "No sandbox is in force: the script had the rights of the service. MAINBOX_FLOOR=none is for development",
        ),
        (
            sandboxed,
            declared_tier(),
            "MAINBOX_FLOOR=none is for development: a sandbox is in force now, but none is required",
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
fn links_and_pipes_in_outputs_are_not_returned_even_without_a_sandbox() {
    let calls = [libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare];
    let settings = [("MAINBOX_FLOOR", "none"), ("MAINBOX_PRELOAD", ""), ("PORT", "0")];
    let server = Server::direct(&mut without(&calls, &settings));
    let script = indoc! {r#"
        import os

        def main():
            os.symlink('/etc/passwd', 'outputs/link')
            os.symlink('/etc', 'outputs/folder')
            os.mkfifo('outputs/pipe')
            os.mkdir('outputs/real')
            os.symlink('../..', 'outputs/real/up')
            with open('outputs/real/file', 'w') as file:
                file.write('mine')
            return sorted(os.listdir('outputs'))
    "#};
    let answer = server.run(script).json();
    assert_eq!(answer["result"], json!(["folder", "link", "pipe", "real"]));
    assert_eq!(answer["files"], json!({"real/file": "mine"}));
    let script = indoc! {r#"
        import os

        def main():
            os.rmdir('outputs')
            os.symlink('/etc', 'outputs')
            return 1
    "#};
    let answer = server.run(script).json();
    assert_eq!((&answer["result"], &answer["files"]), (&json!(1), &json!(null)));
}

#[test]
fn a_scratch_root_that_something_removes_is_made_anew() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "json")]);
    let write =
        "import os\ndef main():\n    with open('file', 'w') as file: return file.write('x')";
    // Only workers with a private root mount their directories, at `box/scratch`.
    let first = if declared_tier() == "namespaces" { 0 } else { 1 };
    for gone in ["box/scratch", "box", ""].into_iter().skip(first) {
        let repairs = || server.log().matches("the scratch root was gone").count();
        let before = repairs();
        // Fails as long as a new worker gets a directory there meanwhile.
        while std::fs::remove_dir_all(scratch_roots(server.pid())[0].join(gone)).is_err() {}
        let started = Instant::now();
        while repairs() == before || server.get("/health").status != 200 {
            assert!(started.elapsed() < Duration::from_secs(20), "{gone}: {}", server.log());
            // It may lose its directory or its zygote.
            server.run(write);
        }
        assert_eq!(server.run(write).body, r#"{"result":1,"stdout":""}"#);
    }
}

#[test]
fn a_worker_whose_lock_down_fails_gets_no_request() {
    if declared_tier() != "namespaces" {
        return not_run("only the tier namespaces mounts scratch directories");
    }
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(server.run("def main(): return 1").status, 200);
    // With a file as the mount point of scratch directories, every new worker fails at that step.
    let mount_point = scratch_roots(server.pid())[0].join("box/scratch");
    std::fs::remove_dir(&mount_point).unwrap();
    std::fs::write(mount_point, "").unwrap();
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
            String::from("Workers cannot be started; the log of the service says why")
        )
    );
    server.log_line("step mount of its start failed: Not a directory (os error 20)", 1);
    server.log_line("the scratch root is gone and cannot be made anew", 1);
    let health = server.get("/health");
    assert_eq!(health.status, 503);
    assert_eq!(
        health.json(),
        json!({"status": "unhealthy", "error": "workers cannot be started; the log says why"})
    );
}

/// A script decides how many files it leaves, and removing them takes seconds. Two scripts, one that ends its process and
/// one that returns, leave directories: each takes longer to remove than to create.
#[test]
fn requests_are_answered_while_the_leftovers_of_a_script_are_removed() {
    let settings = [("MAINBOX_FLOOR", "seccomp"), ("MAINBOX_PRELOAD", "")];
    let server = Server::direct(&mut without(&[libc::SYS_unshare, libc::SYS_mount], &settings));
    let litter = |count: u32, end: &str| {
        formatdoc! {r#"
            import os

            def main():
                for number in range({count}):
                    os.mkdir(f"d{{number}}")
                {end}
        "#}
    };
    let done = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        let probe = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                server.get("/health");
                slowest = slowest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            slowest
        });
        let outcomes = [
            server.run(&litter(4000, "os._exit(0)")).failure().1,
            server.run(&litter(1_000_000, "return 1")).failure().1,
            server.run(&litter(4000, "return 1")).body,
            server.run("def main(): return 1").body,
        ];
        std::thread::sleep(Duration::from_secs(1));
        done.store(true, Ordering::Relaxed);
        let right = r#"{"result":1,"stdout":""}"#;
        assert_eq!(outcomes, ["exit", "scratch_limit", right, right]);
        probe.join().unwrap()
    });
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
