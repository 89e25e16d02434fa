//! What the host gives, and which tests it cannot run.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::{bare_mainbox, output};

/// What the tests expect of the place that runs them.
#[derive(Debug, Clone)]
struct World {
    /// The isolation tier that the server must report.
    tier: String,
    /// What this place does not have, in the words of `tests/worlds/run`.
    lacks: BTreeSet<String>,
}

/// The tier that WORLD_TIER declares. Without a declaration, the tier that `mainbox doctor` finds.
pub fn declared_tier() -> String {
    world().tier.clone()
}

/// Whether this place lacks something: WORLD_LACKS declares it, or `mainbox doctor` finds it.
pub fn lacks(what: &str) -> bool {
    world().lacks.contains(what)
}

/// Whether the server runs one script at a time, because nothing keeps the files of two workers apart.
pub fn one_at_a_time() -> bool {
    lacks("own uid") && lacks("landlock") && declared_tier() != "namespaces"
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| match std::env::var("WORLD_TIER") {
        Ok(tier) => {
            let lacks = std::env::var("WORLD_LACKS").unwrap_or_default();
            World { tier, lacks: lacks.split(',').map(str::to_owned).collect() }
        }
        Err(_) => match run_folder() {
            Some(folder) => found_once(&folder),
            None => World::from_doctor(&doctor()),
        },
    })
}

/// Returns what `mainbox doctor` found in this test run. Under nextest each test is a process, and the first one asks.
fn found_once(folder: &Path) -> World {
    let _lock = lock(&folder.join("doctor.lock"));
    let file = folder.join("doctor");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|_| {
        let text = doctor();
        std::fs::write(&file, &text).unwrap();
        text
    });
    World::from_doctor(&text)
}

fn doctor() -> String {
    let mut command = bare_mainbox();
    command.arg("doctor");
    let (_, text, error) = output(command.env("MAINBOX_PRELOAD", "").env("MAINBOX_FLOOR", "none"));
    assert!(text.contains("\nisolation  "), "mainbox doctor failed: {text}{error}");
    text
}

impl World {
    fn from_doctor(text: &str) -> World {
        let tier = text.lines().find_map(|line| line.strip_prefix("isolation  ")).unwrap();
        assert_ne!(tier, "none", "this host offers no isolation, so the tests cannot run: {text}");
        let missing = |layer: &str| text.contains(&format!("  no   {layer}: "));
        let by_chroot = text.contains("private root and scratch: works, by chroot");
        let own_uid = missing("own uid per worker");
        let threads = tier == "rlimits" || (tier == "seccomp" && missing("limited threads"));
        let found = [
            ("landlock", missing("landlock")),
            ("own uid", own_uid),
            ("threads", threads),
            ("files", tier == "rlimits"),
            ("sweep", missing("removal of leftovers")),
            ("peak", by_chroot),
            (
                "modes",
                tier == "seccomp"
                    && own_uid
                    && (missing("landlock") || missing("libraries of another owner")),
            ),
        ];
        let lacks = found.into_iter().filter(|(_, lacks)| *lacks);
        World { tier: tier.to_owned(), lacks: lacks.map(|(what, _)| what.to_owned()).collect() }
    }
}

/// Returns how long a test waits for what takes at most `time` on a machine of today. WORLD_TIME_FACTOR makes it longer on
/// an emulated one, which changes nothing else that a test expects.
pub fn patience(time: Duration) -> Duration {
    let factor = std::env::var("WORLD_TIME_FACTOR");
    time * factor.map_or(1, |factor| factor.parse().expect("WORLD_TIME_FACTOR is a whole number"))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Records that this test cannot run here. `make test` prints the records of `target/not-run.txt` at its end.
pub fn not_run(reason: &str) {
    let name = std::env::var("NEXTEST_TEST_NAME").ok();
    let name = name.or_else(|| std::thread::current().name().map(str::to_owned)).unwrap();
    eprintln!("not run here: {name}: {reason}");
    if let Some(target) = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()
        && let Ok(mut file) =
            File::options().append(true).create(true).open(target.join("not-run.txt"))
    {
        file.write_all(format!("{name}: {reason}\n").as_bytes()).unwrap();
    }
}

/// The directory that the processes of one nextest run share. `None` when the tests run in one process per file.
pub fn run_folder() -> Option<PathBuf> {
    let run = std::env::var("NEXTEST_RUN_ID").ok()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-{run}"));
    std::fs::create_dir_all(&folder).unwrap();
    Some(folder)
}

/// Waits for a file lock. The lock ends with the returned file, or with this process.
pub fn lock(path: &Path) -> File {
    let file = File::create(path).unwrap();
    file.lock().unwrap();
    file
}
