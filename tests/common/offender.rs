//! The offenders: small Python scripts that try what must not be possible, each with a harmless twin that must succeed.

use std::path::PathBuf;

/// What every offender finds defined.
const PRELUDE: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    "Calls the C library, past every check in Python."
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def system_call(number, *arguments):
    return call("syscall", number, *arguments)

def reaches_the_kernel(number, *arguments):
    "Makes a call with arguments that cannot work: only a filter answers EPERM, and only its absence ENOSYS."
    try:
        return system_call(number, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise
        return error

def others(entry):
    "What /proc says of other processes, the parent and all with near or low ids: yields what can be read."
    own = os.getpid()
    for process in {os.getppid(), *range(1, 3000), *range(max(1, own - 3000), own + 3000)}:
        if process != own:
            try:
                with open(f"/proc/{process}/{entry}", "rb") as file:
                    yield file.read(64)
            except OSError:
                continue

def writes(place):
    "Whether a file can be made in a directory, or a directory where no file can be opened."
    path = os.path.join(place, f"mainbox-offender-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except OSError:
        return False
    os.unlink(path)
    return True

def nothing():
    raise FileNotFoundError("nothing")
"#;

/// Runs both halves and tells of each: `did`, or what it met.
const RUNNER: &str = r#"
def main():
    def outcome(half):
        try:
            return "did: " + repr(half())[:200]
        except BaseException as error:
            return f"refused: {type(error).__name__}: {error}"[:300]
    return {"twin": outcome(twin), "offence": outcome(offence)}
"#;

/// An offender, as its file has it.
pub struct Offender {
    pub name: String,
    pub promise: u8,
    /// The worlds that refuse it: tiers, `landlock` for the tier seccomp where the kernel has that.
    pub worlds: Vec<String>,
    /// Whether it succeeds in a plain interpreter.
    pub bites: bool,
    source: String,
}

impl Offender {
    pub fn read(name: &str) -> Offender {
        let source = std::fs::read_to_string(folder().join(format!("{name}.py"))).unwrap();
        let header = source.lines().next().unwrap().trim_matches('"');
        let (promise, rest) =
            header.strip_prefix("Promise ").unwrap().split_once("; tiers: ").unwrap();
        let (worlds, reason) =
            rest.trim_end_matches('.').split_once("; does not bite: ").unwrap_or((rest, ""));
        Offender {
            name: name.to_owned(),
            promise: promise.parse().unwrap(),
            worlds: worlds.trim_end_matches('.').split(", ").map(str::to_owned).collect(),
            bites: reason.is_empty(),
            source,
        }
    }

    pub fn all() -> Vec<Offender> {
        let mut names: Vec<String> = std::fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.iter().map(|name| Offender::read(name)).collect()
    }

    /// The whole script; `port` is the service's own.
    pub fn script(&self, port: u16) -> String {
        format!("{PRELUDE}\nPORT = {port}\n{}\n{RUNNER}", self.source)
    }
}

/// Beside the sources, or beside the suite where that runs in an image.
fn folder() -> PathBuf {
    std::env::var_os("WORLD_OFFENDERS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/offenders")),
        PathBuf::from,
    )
}
