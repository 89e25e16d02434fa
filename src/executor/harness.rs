//! The harness: the Python side, a package in `harness/`, embedded in the binary.

/// A module of the harness and its source.
macro_rules! module {
    ($name:literal) => {
        (
            concat!("mainbox_harness.", $name),
            include_str!(concat!("../../harness/mainbox_harness/", $name, ".py")),
        )
    };
}

/// The modules of the package `mainbox_harness` that a zygote can import: name and source.
pub const MODULES: &[(&str, &str)] = &[
    module!("audit_hook"),
    module!("bytecode_archive"),
    module!("control"),
    module!("ending"),
    module!("failure"),
    module!("fork_hooks"),
    module!("frames"),
    module!("hints"),
    module!("import_home"),
    module!("inline_threads"),
    module!("json_reasons"),
    module!("late_limits"),
    module!("lazy_imports"),
    module!("libc"),
    module!("library_forms"),
    module!("limits"),
    module!("long_parts"),
    module!("memory_fs"),
    module!("memory_imports"),
    module!("native"),
    module!("outputs"),
    module!("pandas_hints"),
    module!("patterns"),
    module!("pictures"),
    module!("printing"),
    module!("process_state"),
    module!("script"),
    module!("substitutes"),
    module!("thread_limit"),
    module!("to_json"),
    module!("validation"),
    module!("warmup"),
    module!("worker"),
    module!("zygote"),
];

/// The program that Python runs first. It makes [`MODULES`] importable and starts the zygote.
pub(super) const LOADER: &str = include_str!("../../harness/mainbox_harness/loader.py");

/// The script of the self-test.
pub(super) const SELF_TEST: &str = include_str!("../../harness/mainbox_harness/self_test.py");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_package_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/harness/mainbox_harness");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<String> = names
            .filter_map(|name| Some(name.to_str()?.strip_suffix(".py")?.to_owned()))
            .filter(|name| !["__init__", "loader", "self_test"].contains(&name.as_str()))
            .map(|name| format!("mainbox_harness.{name}"))
            .collect();
        files.sort();
        assert_eq!(files, MODULES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
