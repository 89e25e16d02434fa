//! Compiles the package `zygote/` for the inside of a Python process, and converts openapi.yaml to JSON, which many clients
//! ask for and no hand should keep in step.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The entry points of the code in `zygote/`.
const FUNCTIONS: [&str; 5] = [
    "mainbox_zygote",
    "mainbox_allocate_arena",
    "mainbox_free_arena",
    "mainbox_json_numbers",
    "mainbox_json_string",
];

fn main() {
    convert_openapi();
    compile_zygote();
}

fn convert_openapi() {
    println!("cargo::rerun-if-changed=openapi.yaml");
    let yaml = std::fs::read_to_string("openapi.yaml").expect("openapi.yaml can be read");
    let document: serde_json::Value =
        serde_yaml_ng::from_str(&yaml).expect("openapi.yaml is valid YAML");
    std::fs::write(output("openapi.json"), document.to_string()).expect("OUT_DIR can be written");
}

/// Writes `zygote.code`, which runs at any address, and sets a variable to the offset of each function that is called from
/// outside.
///
/// Cargo cannot build this as a dependency: it needs other flags, and a linker that adds nothing.
fn compile_zygote() {
    println!("cargo::rerun-if-changed=zygote/src");
    let (object, linked) = (output("zygote.o"), output("zygote.elf"));
    let compiler = variable("RUSTC");
    run(Command::new(&compiler)
        .args(["--edition", "2024", "--crate-name", "mainbox_zygote", "--crate-type", "lib"])
        .args(["--emit", "obj", "--cfg", "freestanding", "--target"])
        .arg(variable("TARGET"))
        .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "overflow-checks=off"])
        // Calls go straight to their targets, not through a table of addresses.
        .args(["-C", "relocation-model=pie", "-C", "relro-level=off", "-C", "codegen-units=1"])
        .arg("zygote/src/lib.rs")
        .arg("-o")
        .arg(&object));
    // The linker that comes with the compiler knows every architecture.
    run(Command::new(linker(&compiler))
        .args(["-flavor", "gnu", "-pie", "--no-dynamic-linker", "--entry=mainbox_zygote"])
        .args(["--export-dynamic"])
        .args(["--no-rosegment", "--gc-sections", "--strip-all", "-z", "defs", "-z", "norelro"])
        .arg(&object)
        .arg("-o")
        .arg(&linked));
    let file = std::fs::read(linked).expect("the linker has written its output");
    let code = segment(&file).expect("zygote.elf has read-only code and nothing else");
    std::fs::write(output("zygote.code"), code).expect("OUT_DIR can be written");
    for name in FUNCTIONS {
        let offset = symbol(&file, name).unwrap_or_else(|| panic!("zygote.elf exports {name}"));
        println!("cargo::rustc-env=OFFSET_OF_{name}={offset}");
    }
}

/// Returns the segment with code and constants of an ELF file. Returns `None` if the code needs relocations or writable
/// data, as code that may panic does.
fn segment(file: &[u8]) -> Option<&[u8]> {
    // From elf.h.
    const PT_LOAD: u64 = 1;
    const PT_DYNAMIC: u64 = 2;
    const PT_TLS: u64 = 7;
    const DT_RELA: u64 = 7;
    const DT_REL: u64 = 17;
    const DT_JMPREL: u64 = 23;
    const DT_RELR: u64 = 36;
    let (headers, count) = (number(file, 32, 8)?, number(file, 56, 2)?);
    let (mut code, mut dynamic, mut data) = (None, (0, 0), 0);
    for index in 0..count {
        let header = headers + index * 56;
        let (kind, offset) = (number(file, header, 4)?, number(file, header + 8, 8)?);
        let (in_file, in_memory) = (number(file, header + 32, 8)?, number(file, header + 40, 8)?);
        match kind {
            PT_LOAD if offset == 0 && in_file == in_memory => code = file.get(..in_file as usize),
            PT_LOAD => data += in_memory,
            PT_DYNAMIC => dynamic = (offset, in_memory),
            PT_TLS => return None,
            _ => {}
        }
    }
    let (offset, size) = dynamic;
    let tags = (offset..offset + size).step_by(16).map(|entry| number(file, entry, 8));
    let relocated = tags.flatten().any(|tag| [DT_RELA, DT_REL, DT_JMPREL, DT_RELR].contains(&tag));
    // The dynamic section is the only data.
    if relocated || data != size { None } else { code }
}

/// Returns the address of a function that an ELF file exports. It is an offset in the segment, which begins at zero.
fn symbol(file: &[u8], name: &str) -> Option<u64> {
    const SHT_DYNSYM: u64 = 11;
    let (sections, count) = (number(file, 40, 8)?, number(file, 60, 2)?);
    let section = |index: u64| sections + index * 64;
    let dynamic = |index: &u64| number(file, section(*index) + 4, 4) == Some(SHT_DYNSYM);
    let symbols = section((0..count).find(dynamic)?);
    let names = section(number(file, symbols + 40, 4)?);
    let (names, first) = (number(file, names + 24, 8)?, number(file, symbols + 24, 8)?);
    let has_name = |symbol: &u64| {
        let start = number(file, *symbol, 4).map(|offset| (names + offset) as usize);
        let rest = start.and_then(|start| file.get(start..)).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]))
    };
    let mut all = (first..first + number(file, symbols + 32, 8)?).step_by(24);
    number(file, all.find(has_name)? + 8, 8)
}

/// The little-endian number of so many bytes at an offset.
fn number(file: &[u8], offset: u64, bytes: u64) -> Option<u64> {
    let bytes = file.get(offset as usize..offset.checked_add(bytes)? as usize)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn linker(compiler: &OsString) -> PathBuf {
    let printed = Command::new(compiler).args(["--print", "sysroot"]).output();
    let printed = String::from_utf8(printed.expect("the compiler runs").stdout);
    let sysroot = printed.expect("the path of the compiler is UTF-8");
    let tools = Path::new(sysroot.trim()).join("lib/rustlib").join(variable("HOST")).join("bin");
    tools.join("rust-lld")
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        panic!("{command:?}: {error}. The build needs rust-lld, which rustup installs with the compiler")
    });
    assert!(status.success(), "{command:?}: {status}");
}

fn output(name: &str) -> PathBuf {
    Path::new(&variable("OUT_DIR")).join(name)
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"))
}
