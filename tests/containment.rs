//! Containment: what a hostile script must not be able to do in the environment in which the suite runs.
//!
//! The environment declares itself: WORLD_TIER is the tier that the server must report, and WORLD_LACKS
//! (comma-separated) lists what the environment is known to lack. The suite fails if it finds anything else, so that no
//! test is skipped silently.
#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeSet;

use common::offender::Offender;
use common::{declared_tier, hostile_server, lacks};
use serde_json::{Value, json};

/// Runs an offender and compares the outcome with what its header promises for this environment.
#[track_caller]
fn contained(name: &str) {
    let offender = Offender::read(name);
    let server = hostile_server();
    let answer = server.run(&offender.script(server.port()));
    // A system call of a foreign architecture ends the process.
    let killed = answer.failure().2 == "The script crashed: SIGSYS";
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

/// Whether the offender must be refused in this environment.
fn promised(offender: &Offender) -> bool {
    let worlds = |world: &str| offender.worlds.iter().any(|name| name == world);
    match declared_tier().as_str() {
        "seccomp" if !lacks("landlock") => worlds("landlock"),
        "namespaces" if lacks("capped-scratch") && offender.name.starts_with("fills_") => false,
        tier => worlds(tier),
    }
}

/// Whether the twin needs files or descriptors, which the tier rlimits does not allow.
fn twin_is_declared_missing(name: &str) -> bool {
    const NEEDS_FILES: [&str; 6] = [
        "writes_outside_its_scratch_directory",
        "fills_its_scratch_directory_with_bytes",
        "fills_its_scratch_directory_with_files",
        "reads_the_password_file",
        "enlarges_a_pipe",
        "sends_through_a_socket_pair_to_an_address",
    ];
    lacks("files") && NEEDS_FILES.contains(&name)
}

macro_rules! offenders {
    ($($name:ident)*) => {
        /// Every offender that has a test here.
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            contained(stringify!($name));
        })*
    };
}

offenders! {
    asks_the_runtime_api_and_the_metadata_servers
    becomes_root
    changes_its_personality
    changes_its_root
    changes_the_priority_of_another_process
    connects_over_loopback
    connects_to_a_unix_socket
    connects_to_the_service_itself
    enlarges_a_pipe
    enters_a_new_namespace
    enters_through_the_32_bit_gate
    executes_a_program
    executes_a_program_from_memory
    fills_its_scratch_directory_with_bytes
    fills_its_scratch_directory_with_files
    finds_inherited_descriptors
    finds_secrets_in_its_environment
    forks
    forks_by_a_bare_clone
    forks_by_clone3
    handles_page_faults_of_the_kernel
    hardlinks_a_library_into_its_directory
    installs_a_filter_of_its_own
    joins_a_namespace
    keeps_a_key_in_a_keyring
    leaves_a_daemon
    limits_another_process
    links_its_way_out
    lists_the_descriptors_of_others
    lists_the_root_directory
    loads_a_kernel_module
    loads_a_program_into_the_kernel
    makes_a_device
    makes_a_message_queue
    makes_a_posix_queue
    makes_semaphores
    makes_shared_memory
    maps_memory_writable_and_executable
    measures_the_kernel
    mounts_a_file_system
    opens_a_handle_of_another_process
    opens_a_socket_of_some_family
    opens_an_internet_socket
    opens_the_memory_of_its_parent
    overwrites_a_library
    poisons_the_bytecode_of_a_library
    queues_a_signal_to_another_process
    raises_its_own_limits
    reads_the_binary_of_the_service
    reads_the_command_line_of_others
    reads_the_environment_of_others
    reads_the_memory_map_of_others
    reads_the_memory_of_its_parent
    reads_the_password_file
    resolves_a_name
    sends_through_a_socket_pair_to_an_address
    signals_a_thread_of_another_process
    signals_everybody
    signals_its_parent
    signals_its_process_group
    spawns_a_program
    starts_a_shell
    starts_a_thousand_threads
    takes_a_descriptor_of_another_process
    takes_capabilities
    traces_its_parent
    uses_io_uring
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
fn the_environment_is_the_one_that_was_declared() {
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
    let cpus = std::env::var("WORLD_CPUS").ok().and_then(|cpus| cpus.parse::<u64>().ok());
    let cpus = cpus.or_else(|| std::thread::available_parallelism().ok().map(|n| n.get() as u64));
    assert_eq!(about["limits"]["concurrency"].as_u64(), cpus);
}

// Isolation between requests.

#[test]
fn a_script_does_not_see_what_the_previous_one_patched() {
    let server = hostile_server();
    let patch = "import builtins, json, os, sys, random\nimport numpy as np\nimport pandas as pd\ndef main():\n    \
        json.dumps = pd.DataFrame.sum = os.getcwd = np.mean = None\n    builtins.marker = sys.modules['marker'] = 'left'\n    \
        pd.DataFrame.marker = 'left'\n    os.environ['MARKER'] = 'left'\n    random.seed(1)\n    np.random.seed(1)\n    return 1";
    let look = "import builtins, json, os, sys\nimport numpy as np\nimport pandas as pd\ndef main():\n    return [json.dumps(1), \
        int(pd.DataFrame({'a': [1]}).sum()['a']), callable(os.getcwd), float(np.mean([2])), hasattr(builtins, 'marker'), 'marker' in sys.modules, \
        hasattr(pd.DataFrame, 'marker'), 'MARKER' in os.environ]";
    for _ in 0..4 {
        assert_eq!(server.run(patch).json()["result"], 1);
        let clean = json!(["1", 1, true, 2.0, false, false, false, false]);
        assert_eq!(server.run(look).json()["result"], clean);
    }
}

#[test]
fn data_of_other_requests_is_not_in_memory() {
    let server = hostile_server();
    let secret = "def main(x): return [x * 3, globals().setdefault('kept', x)][0][:5]";
    // Put together at run time, so that the search does not find its own source.
    let search = "import gc\ndef main():\n    marker = 'needle' + str(7 * 6) + 'haystack'\n    found = []\n    for thing in gc.get_objects():\n        try:\n            if thing is not None and marker in repr(thing)[:100_000]: found.append(type(thing).__name__)\n        except Exception: pass\n    return [name for name in found if name != 'frame']";
    for _ in 0..3 {
        let body = json!({"script": secret, "input": "needle42haystack"});
        assert_eq!(server.execute(&body).json()["result"], "needl");
        assert_eq!(server.run(search).json()["result"], json!([]));
    }
}

#[test]
fn objects_of_the_harness_let_a_script_change_only_its_own_response() {
    let server = hostile_server();
    let script = "import gc, sys\ndef main():\n    frame = sys._getframe()\n    while frame.f_back: frame = frame.f_back\n    \
        names = sorted({type(x).__name__ for x in gc.get_objects()} & {'Channel', 'Zygote'})\n    \
        control = [x for x in gc.get_objects() if type(x).__name__ == 'socket']\n    \
        sends = []\n    for socket in control:\n        try: sends.append(socket.send(b'{\"order\": \"fork\"}'))\n        except OSError as error: pass\n    \
        return sends";
    assert_eq!(server.run(script).json()["result"], json!([]));
    assert_eq!(server.run("def main(): return 'next'").body, r#"{"result":"next","stdout":""}"#);
}

#[test]
fn a_forged_result_affects_only_its_own_request() {
    let server = hostile_server();
    let forge = "import os, struct\ndef main():\n    value = b'\"forged\"'\n    for _ in range(3):\n        os.write(3, b'V' + struct.pack('<I', len(value)) + value)\n    return 'honest'";
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

#[test]
fn leftovers_in_world_writable_directories_are_removed() {
    let server = hostile_server();
    let leave = "import os\ndef main():\n    made = []\n    for place in ('/tmp', '/var/tmp', '/dev/shm'):\n        try:\n            os.makedirs(f'{place}/mainbox-left/deep')\n            made.append(place)\n        except OSError: pass\n    return made";
    let look = "import os\ndef main():\n    return [place for place in ('/tmp', '/var/tmp', '/dev/shm') if os.path.exists(f'{place}/mainbox-left')]";
    for _ in 0..3 {
        server.run(leave);
        // Where workers have their own uids, leftovers may be removed while the next request runs.
        let started = std::time::Instant::now();
        while server.run(look).json()["result"] != json!([]) {
            assert!(!lacks("own uid"), "the next request found what the one before it left");
            assert!(started.elapsed() < std::time::Duration::from_secs(5), "never swept");
        }
    }
}

#[test]
fn scripts_cannot_leave_messages_in_shared_resources() {
    let server = hostile_server();
    // The flags of descriptor 0; links beside and above the scratch directory; a queue whose owner was changed to root.
    let leave = "import ctypes, fcntl, os\ndef main():\n    libc = ctypes.CDLL(None)\n    \
        try: fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)\n    except OSError: pass\n    \
        for link in ('../stash', '../../stash', '../../root/stash', '/tmp/stash'):\n        \
        try: os.symlink('secret', link)\n        except OSError: pass\n    \
        queue = libc.msgget(0x6d62, 0o1666)\n    data = (ctypes.c_uint32 * 64)()\n    \
        if queue >= 0 and libc.msgctl(queue, 2, data) == 0:\n        data[1] = data[2] = 0\n        libc.msgctl(queue, 1, data)\n    return 1";
    let look = "import ctypes, fcntl, os\ndef main():\n    found = []\n    \
        try:\n        if fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND): found.append('flags')\n    except OSError: pass\n    \
        for link in ('../stash', '../../stash', '../../root/stash', '/tmp/stash'):\n        \
        try: found.append(os.readlink(link))\n        except OSError: pass\n    \
        if ctypes.CDLL(None).msgget(0x6d62, 0) >= 0: found.append('queue')\n    return found";
    for _ in 0..3 {
        assert_eq!(server.run(leave).json()["result"], 1);
        if lacks("own uid") || declared_tier() == "namespaces" {
            assert_eq!(server.run(look).json()["result"], json!([]));
        }
    }
}

#[test]
fn removing_permissions_does_not_affect_other_responses() {
    let server = hostile_server();
    let spoil = "import os\ndef main():\n    for place in ('../scratch', '..', '../..'):\n        \
        try: os.chmod(place, 0)\n        except OSError: pass\n    return 1";
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
fn each_bomb_gets_a_clear_response_and_other_requests_are_served() {
    let server = hostile_server();
    let bombs = [
        "def main():\n    x = []\n    while True: x.append(bytearray(1 << 20))",
        "def main():\n    f = lambda: f()\n    import sys\n    sys.setrecursionlimit(10**9)\n    f()",
        "def main():\n    x = 'x'\n    while True: x += x",
        "def main():\n    import os\n    while True:\n        try: os.fork()\n        except OSError: return 'refused'",
        "import os\ndef main():\n    for _ in range(2000): os.write(2, b'e' * 65536)\n    return 'flooded'",
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
