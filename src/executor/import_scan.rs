//! Guesses from the import statements of a script which zygote it needs. A wrong guess costs time and nothing else.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::job::Job;

/// Returns the script of a job and the modules among its files.
pub(super) fn sources(job: &Job) -> Vec<Cow<'_, str>> {
    let modules = job.files.iter().filter(|(name, _)| name.ends_with(".py"));
    let modules = modules.map(|(_, content)| String::from_utf8_lossy(content));
    std::iter::once(Cow::from(&*job.script)).chain(modules).collect()
}

/// Returns whether the import statements of `script` name `standard` modules only. Wrong guesses are possible in both
/// directions. A script that imports a package in another way imports it from disk.
pub(super) fn is_standard(script: &str, standard: &BTreeSet<String>) -> bool {
    imported(script).all(|name| standard.contains(name))
}

/// Returns whether `script` mentions the package of a module anywhere.
pub(super) fn names(script: &str, module: &str) -> bool {
    script.contains(package(module))
}

/// The packages in the import statements of `script`, found line by line without parsing.
fn imported(script: &str) -> impl Iterator<Item = &str> {
    script.lines().flat_map(|line| line.split(';')).flat_map(|statement| {
        let statement = statement.trim_start();
        // Python 3.15 can put off an import: `lazy import scipy`.
        let statement = statement.strip_prefix("lazy ").map_or(statement, str::trim_start);
        let modules = match statement.strip_prefix("import ") {
            Some(modules) => modules,
            None => statement
                .strip_prefix("from ")
                .map_or("", |module| module.split_whitespace().next().unwrap_or_default()),
        };
        modules.split(',').map(package).filter(|name| !name.is_empty())
    })
}

/// The package of a module name, without anything that follows it.
fn package(module: &str) -> &str {
    let module = module.trim_start();
    let end = module.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &module[..end.unwrap_or(module.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(script: &str) -> bool {
        let standard = ["os", "json", "math", "urllib"].map(String::from).into();
        let names_any = ["numpy", "pandas.io"].iter().any(|module| names(script, module));
        !names_any && is_standard(script, &standard)
    }

    #[test]
    fn scripts_that_import_the_standard_library_only_are_recognized() {
        for script in [
            "def main(): return 1",
            "import os, json as j\ndef main(): return 1",
            "from urllib.request import urlopen; import math",
            "def main():\n    from os.path import join\n    import math # for pi\n    return 'from here, import there'",
            "import os.path as path,json",
            "lazy import os\nlazy from urllib.request import urlopen",
        ] {
            assert!(standard(script), "{script}");
        }
    }

    #[test]
    fn any_other_module_needs_the_preloaded_zygote() {
        for script in [
            "import numpy as np",
            "import os, numpy",
            "def main():\n\tfrom pandas import DataFrame",
            "def main(): return __import__('numpy').pi",
            "import scipy.optimize",
            "import os; import scipy",
            "from requests import get",
            "lazy import scipy",
            "lazy  from requests import get",
            "import importlib\nimportlib.import_module('pandas')",
        ] {
            assert!(!standard(script), "{script}");
        }
    }
}
