//! Containment: what a hostile script must not be able to do.
//!
//! A world of `tests/worlds/run` declares itself: WORLD_TIER is the tier that the server must report, WORLD_LACKS
//! (comma-separated) what the world lacks. The suite fails when it finds something else. Elsewhere the suite expects what
//! `mainbox doctor` finds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;

use std::time::{Duration, Instant};

use common::offender::Offender;
use common::{Server, declared_tier, hostile_server, lacks, patience};
use indoc::indoc;
use serde_json::{Value, json};

const FULL: &str = "The script wrote more than its limit of 64 MB to its scratch directory";
const MANY: &str =
    "The script created more than 4096 files, or directories more than 64 levels deep";

/// Runs an offender and compares the outcome with what the header of its file promises for this world.
#[track_caller]
fn contained(name: &str) {
    let offender = Offender::read(name);
    let server = hostile_server();
    let answer = server.run(&offender.script(server.port()));
    // The filter ends a process that makes a system call of a foreign architecture. The supervisor ends one that fills a
    // scratch directory that is not a file system of its own.
    let killed = ["The script crashed: SIGSYS", FULL, MANY].contains(&answer.failure().2.as_str());
    let body = answer.json();
    let outcome = |half: &str| body["result"][half].as_str().unwrap_or_default().to_owned();
    if promised(&offender) {
        assert!(killed || outcome("offence").starts_with("refused: "), "{}", answer.body);
    }
    if !killed && !twin_is_declared_missing(name) {
        assert!(outcome("twin").starts_with("did: "), "{}", answer.body);
    }
    let next = server.run("def main(): return 'next'");
    assert_eq!(next.body, r#"{"result":"next","stdout":""}"#);
}

/// Returns whether this world promises to refuse the offence.
fn promised(offender: &Offender) -> bool {
    let worlds = |world: &str| offender.worlds.iter().any(|name| name == world);
    match declared_tier().as_str() {
        "seccomp" if !lacks("landlock") => worlds("landlock"),
        tier => worlds(tier),
    }
}

/// Returns whether a twin needs what scripts cannot do in this world: files, which a worker in the tier rlimits cannot
/// create, or changes of modes and times.
fn twin_is_declared_missing(name: &str) -> bool {
    const NEEDS_FILES: [&str; 16] = [
        "asks_its_channel_for_a_pidfd",
        "changes_the_mode_of_a_library",
        "changes_the_mode_of_a_library_through_a_descriptor",
        "changes_the_times_of_a_library",
        "exchanges_two_files",
        "makes_a_file_set_user_id",
        "moves_pages_within_the_kernel",
        "punches_a_hole_into_a_file",
        "sends_out_of_band_data",
        "truncates_a_library",
        "writes_outside_its_scratch_directory",
        "fills_its_scratch_directory_with_bytes",
        "fills_its_scratch_directory_with_files",
        "reads_a_file_of_the_host",
        "enlarges_a_pipe",
        "sends_through_a_socket_pair_to_an_address",
    ];
    // Where a script could open files of the service, it may not change modes and times of any file.
    const NEEDS_MODES: [&str; 2] =
        ["changes_the_mode_of_a_library", "changes_the_times_of_a_library"];
    (lacks("files") && NEEDS_FILES.contains(&name))
        || (lacks("modes") && NEEDS_MODES.contains(&name))
}

macro_rules! offenders {
    ($($name:ident)*) => {
        /// The names of all offenders that have a test here.
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            contained(stringify!($name));
        })*
    };
}

offenders! {
    asks_its_channel_for_a_pidfd
    becomes_root
    changes_its_personality
    changes_its_root
    changes_the_mode_of_a_library
    changes_the_mode_of_a_library_through_a_descriptor
    changes_the_priority_of_another_process
    changes_the_times_of_a_library
    connects_over_loopback
    connects_to_a_unix_socket
    connects_to_the_runtime_api_and_the_metadata_servers
    connects_to_the_service_itself
    creates_a_device_node
    creates_a_posix_message_queue
    creates_a_system_v_message_queue
    creates_semaphores
    creates_shared_memory
    enlarges_a_pipe
    enters_a_new_namespace
    exchanges_two_files
    executes_a_program
    executes_a_program_from_memory
    fills_its_scratch_directory_with_bytes
    fills_its_scratch_directory_with_files
    finds_inherited_descriptors
    finds_secrets_in_its_environment
    forks
    forks_with_clone
    forks_with_clone3
    hardlinks_a_library_into_its_directory
    installs_a_filter_of_its_own
    interrupts_every_cpu
    joins_a_namespace
    keeps_a_key_in_a_keyring
    leaves_a_daemon
    limits_another_process
    lists_the_descriptors_of_others
    lists_the_root_directory
    loads_a_bpf_program
    loads_a_kernel_module
    locks_with_priority_inheritance
    makes_a_32_bit_system_call
    makes_a_file_set_user_id
    maps_memory_writable_and_executable
    mounts_a_file_system
    moves_pages_within_the_kernel
    opens_a_performance_counter
    opens_a_pidfd_of_another_process
    opens_a_socket_of_any_family
    opens_an_internet_socket
    opens_the_memory_of_its_parent
    overwrites_a_library
    poisons_the_bytecode_of_a_library
    punches_a_hole_into_a_file
    queues_a_signal_to_another_process
    raises_its_own_limits
    reads_outside_through_a_symlink
    reads_the_binary_of_the_service
    reads_the_clock_of_another_process
    reads_the_command_line_of_others
    reads_the_environment_of_others
    reads_the_memory_map_of_others
    reads_the_memory_of_its_parent
    reads_a_file_of_the_host
    resolves_a_name
    sends_out_of_band_data
    sends_through_a_socket_pair_to_an_address
    signals_a_thread_of_another_process
    signals_every_process
    signals_its_parent
    signals_its_process_group
    spawns_a_program
    starts_a_shell
    starts_a_thousand_threads
    takes_a_descriptor_of_another_process
    takes_capabilities
    traces_its_parent
    truncates_a_library
    uses_io_uring
    uses_userfaultfd
    watches_descriptors_with_epoll
    writes_outside_its_scratch_directory
}

#[test]
fn every_offender_has_a_test() {
    let files: BTreeSet<String> =
        Offender::all().into_iter().map(|offender| offender.name).collect();
    let tests: BTreeSet<String> = TESTED.iter().map(|name| String::from(*name)).collect();
    assert_eq!(files, tests);
}

#[test]
fn the_server_reports_the_expected_isolation() {
    let about = hostile_server().get("/about").json();
    assert_eq!(about["isolation"]["tier"], declared_tier());
    let works = |name: &str| {
        about["isolation"]["layers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|layer| layer["name"] == name && layer["works"] == true)
    };
    assert_eq!(works("landlock"), !lacks("landlock"));
    assert_eq!(works("own uid per worker"), !lacks("own uid"));
    assert_eq!(works("removal of leftovers"), !lacks("sweep"));
    assert!(works("libraries of another owner") || lacks("modes"));
    assert_eq!(works("limited threads"), !lacks("threads") || declared_tier() == "rlimits");
    let cpus = std::env::var("WORLD_CPUS").ok().and_then(|cpus| cpus.parse::<u64>().ok());
    let cpus = cpus.or_else(|| std::thread::available_parallelism().ok().map(|n| n.get() as u64));
    assert_eq!(about["limits"]["concurrency"].as_u64(), cpus);
}

// Between two requests.

#[test]
fn a_script_does_not_see_what_an_earlier_one_patched() {
    let server = hostile_server();
    let patch = indoc! {r#"
        import builtins, json, os, sys, random
        import numpy as np
        import pandas as pd

        def main():
            json.dumps = pd.DataFrame.sum = os.getcwd = np.mean = None
            builtins.marker = sys.modules['marker'] = 'left'
            pd.DataFrame.marker = 'left'
            os.environ['MARKER'] = 'left'
            random.seed(1)
            np.random.seed(1)
            return 1
    "#};
    let look = indoc! {r#"
        import builtins, json, os, sys
        import numpy as np
        import pandas as pd

        def main():
            return [
                json.dumps(1),
                int(pd.DataFrame({'a': [1]}).sum()['a']),
                callable(os.getcwd),
                float(np.mean([2])),
                hasattr(builtins, 'marker'),
                'marker' in sys.modules,
                hasattr(pd.DataFrame, 'marker'),
                'MARKER' in os.environ,
            ]
    "#};
    for _ in 0..4 {
        assert_eq!(server.run(patch).json()["result"], 1);
        let clean = json!(["1", 1, true, 2.0, false, false, false, false]);
        assert_eq!(server.run(look).json()["result"], clean);
    }
}

#[test]
fn no_script_changes_the_memory_that_workers_share() {
    let server = hostile_server();
    let script = indoc! {r#"
        import ctypes, errno, statistics
        MADV_REMOVE = 9
        libc = ctypes.CDLL(None, use_errno=True)

        def remove(shared):
            page = id(shared) // 4096 * 4096
            if libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(4096), MADV_REMOVE) == 0:
                return 'removed'
            return errno.errorcode[ctypes.get_errno()]

        def main():
            # A small object, which Python allocates itself, and a large one of malloc.
            answers = [remove(statistics.mean), remove(statistics.NormalDist)]
            ctypes.memset(id(statistics.mean.__doc__), 0, 8)
            return answers
    "#};
    let look = "import statistics\ndef main(): return statistics.mean.__doc__[:6]";
    // Where there is a filter, it refuses this before the kernel does.
    let errno = if declared_tier() == "rlimits" { "EINVAL" } else { "EPERM" };
    // The zygote moves its memory when it has had nothing to do for a moment.
    std::thread::sleep(std::time::Duration::from_millis(500));
    for _ in 0..4 {
        assert_eq!(server.run(script).json()["result"], json!([errno, errno]));
        assert_eq!(server.run(look).json()["result"], "Return");
    }
}

#[test]
fn every_script_has_random_numbers_of_its_own() {
    let server = hostile_server();
    let script = indoc! {r#"
        import random, ssl, uuid
        import numpy as np
        def main():
            normal = np.random.randn()
            numbers = [random.random(), np.random.random(), normal, np.random.default_rng().random()]
            return [str(number) for number in numbers] + [str(uuid.uuid4()), ssl.RAND_bytes(8).hex()]
    "#};
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..6 {
        for number in server.run(script).json()["result"].as_array().unwrap() {
            assert!(seen.insert(number.to_string()), "{number} twice");
        }
    }
}

#[test]
fn the_streams_of_a_script_are_what_they_say() {
    let script = indoc! {r#"
        import os, sys
        def main():
            streams = [sys.stdin, sys.stdout, sys.stderr]
            same = [sys.__stdin__, sys.__stdout__, sys.__stderr__]
            return [
                [stream.fileno() for stream in streams],
                [stream.encoding for stream in streams],
                [stream.seekable() for stream in streams[1:]],
                [stream.isatty() for stream in streams],
                [one is other for one, other in zip(streams, same)],
                [os.path.basename(os.environ[name]) == os.path.basename(os.getcwd()) for name in ("HOME", "TMPDIR")],
                sorted(os.environ),
            ]
    "#};
    let expected = json!([
        [0, 1, 2],
        ["utf-8", "utf-8", "utf-8"],
        [false, false],
        [false, false, false],
        [true, true, true],
        [true, true],
        common::ENVIRONMENT,
    ]);
    assert_eq!(hostile_server().run(script).json()["result"], expected);
}

#[test]
fn the_data_of_another_request_is_not_in_memory() {
    let server = hostile_server();
    let keep = indoc! {r#"
        def main(x):
            globals()['kept'] = x
            return (x * 3)[:5]
    "#};
    // The script builds the text at run time. Otherwise it would find its own source.
    let search = indoc! {r#"
        import gc

        def main():
            marker = 'needle' + str(7 * 6) + 'haystack'
            found = []
            for thing in gc.get_objects():
                try:
                    if thing is not None and marker in repr(thing)[:100_000]:
                        found.append(type(thing).__name__)
                except Exception:
                    pass
            return [name for name in found if name != 'frame']
    "#};
    for _ in 0..3 {
        let body = json!({"script": keep, "input": "needle42haystack"});
        assert_eq!(server.execute(&body).json()["result"], "needl");
        assert_eq!(server.run(search).json()["result"], json!([]));
    }
}

#[test]
fn a_script_finds_no_socket_of_the_harness() {
    let server = hostile_server();
    let script = indoc! {r#"
        import gc

        def main():
            sent = []
            for thing in gc.get_objects():
                if type(thing).__name__ == 'socket':
                    try:
                        sent.append(thing.send(b'{"order": "fork"}'))
                    except OSError:
                        pass
            return sent
    "#};
    assert_eq!(server.run(script).json()["result"], json!([]));
    assert_eq!(server.run("def main(): return 'next'").body, r#"{"result":"next","stdout":""}"#);
}

#[test]
fn a_forged_result_reaches_only_the_client_of_the_script() {
    let server = hostile_server();
    let forge = indoc! {r#"
        import os, struct

        def main():
            value = b'"forged"'
            for _ in range(3):
                os.write(3, b'V' + struct.pack('<I', len(value)) + value)
            return 'honest'
    "#};
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    let script = format!("def main(): return {number}");
                    let forged = server.run(forge).json()["result"].clone();
                    assert_eq!(forged, "forged");
                    server.run(&script).json()["result"].clone()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers, (0..8).map(|number| json!(number)).collect::<Vec<_>>());
}

/// What belongs to others is known by its uid only, and a worker may share the uid of this test and of another server.
#[test]
fn the_end_of_a_script_takes_nothing_of_others_with_it() {
    if lacks("files") {
        return; // the environment of AWS Lambda belongs to one function
    }
    let server = hostile_server();
    let file = std::env::temp_dir().join(format!("of-others-{}", std::process::id()));
    let other = std::thread::scope(|scope| {
        let script = "import time\ndef main(): time.sleep(2)";
        let running = scope.spawn(|| server.run(script));
        server.wait_until_running(1);
        std::fs::write(&file, "").unwrap();
        let other = Server::start(&[("MAINBOX_PRELOAD", "")]);
        assert_eq!(running.join().unwrap().status, 200);
        other
    });
    assert_eq!(server.run("def main(): return 1").status, 200);
    assert_eq!(other.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn leftovers_in_public_directories_are_removed() {
    let server = hostile_server();
    let leave = indoc! {r#"
        import os

        def main():
            made = []
            for place in ('/tmp', '/var/tmp', '/dev/shm', '/run/lock'):
                try:
                    os.makedirs(f'{place}/mainbox-left/deep')
                    made.append(place)
                except OSError:
                    pass
            return made
    "#};
    let look = indoc! {r#"
        import os

        def main():
            places = ('/tmp', '/var/tmp', '/dev/shm', '/run/lock')
            return [place for place in places if os.path.exists(f'{place}/mainbox-left')]
    "#};
    for _ in 0..3 {
        server.run(leave);
        // Where workers have uids of their own, the sweep may take longer than the start of the next request.
        let started = Instant::now();
        while server.run(look).json()["result"] != json!([]) {
            if lacks("sweep") {
                return; // the layer that `doctor` reports as missing
            }
            assert!(!lacks("own uid"), "a request found the leftovers of the one before it");
            assert!(started.elapsed() < patience(Duration::from_secs(20)), "never swept");
        }
    }
}

#[test]
fn nothing_passes_through_what_workers_share() {
    let server = hostile_server();
    // Flags of descriptor 0, links beside and above the scratch directory, and a message queue that belongs to root.
    let leave = indoc! {r#"
        import ctypes, fcntl, os

        def main():
            libc = ctypes.CDLL(None)
            try:
                fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
            except OSError:
                pass
            for link in ('../stash', '../../stash', '../../root/stash', '/tmp/stash'):
                try:
                    os.symlink('secret', link)
                except OSError:
                    pass
            queue = libc.msgget(0x6d62, 0o1666)
            data = (ctypes.c_uint32 * 64)()
            if queue >= 0 and libc.msgctl(queue, 2, data) == 0:
                data[1] = data[2] = 0
                libc.msgctl(queue, 1, data)
            return 1
    "#};
    let look = indoc! {r#"
        import ctypes, fcntl, os

        def main():
            found = []
            try:
                if fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND):
                    found.append('flags')
            except OSError:
                pass
            for link in ('../stash', '../../stash', '../../root/stash', '/tmp/stash'):
                try:
                    found.append(os.readlink(link))
                except OSError:
                    pass
            if ctypes.CDLL(None).msgget(0x6d62, 0) >= 0:
                found.append('queue')
            return found
    "#};
    for _ in 0..3 {
        assert_eq!(server.run(leave).json()["result"], 1);
        if (lacks("own uid") && !lacks("sweep")) || declared_tier() == "namespaces" {
            assert_eq!(server.run(look).json()["result"], json!([]));
        }
    }
}

#[test]
fn a_script_that_changes_permissions_harms_no_other_request() {
    let server = hostile_server();
    let spoil = indoc! {r#"
        import os

        def main():
            for place in ('../scratch', '..', '../..'):
                try:
                    os.chmod(place, 0)
                except OSError:
                    pass
            return 1
    "#};
    for _ in 0..3 {
        assert_eq!(server.run(spoil).json()["result"], 1);
        assert_eq!(
            server.run("def main(): return 'next'").body,
            r#"{"result":"next","stdout":""}"#
        );
    }
    assert_eq!(server.get("/health").json(), json!({"status": "healthy"}));
}

// Limits.

#[test]
fn bombs_end_with_one_error_and_others_are_served() {
    let server = hostile_server();
    let bombs = [
        indoc! {r#"
            def main():
                x = []
                while True: x.append(bytearray(1 << 20))
        "#},
        indoc! {r#"
            import sys
            def main():
                f = lambda: f()
                sys.setrecursionlimit(10**9)
                f()
        "#},
        indoc! {r#"
            def main():
                x = 'x'
                while True: x += x
        "#},
        indoc! {r#"
            import os
            def main():
                while True:
                    try: os.fork()
                    except OSError: return 'refused'
        "#},
        indoc! {r#"
            import os
            def main():
                for _ in range(2000): os.write(2, b'e' * 65536)
                return 'flooded'
        "#},
    ];
    std::thread::scope(|scope| {
        for bomb in bombs {
            scope.spawn(move || {
                let answer = server.run(bomb);
                assert!(answer.status == 200 || answer.status == 400, "{bomb}: {}", answer.body);
                assert_ne!(answer.failure().1, "internal");
            });
            let answer = server.run("def main(): return sum(range(1000))");
            assert_eq!(answer.json()["result"], 499_500, "{}", answer.body);
        }
    });
}
