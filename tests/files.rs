//! Files of a request, and files that the script leaves in `outputs/`. They behave the same on every host, even where no
//! file can be opened.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Server, lacks, not_run, server};
use indoc::{formatdoc, indoc};
use serde_json::{Value, json};

/// Runs `script` with `files` and expects a 200. Returns the result and the returned files.
#[track_caller]
fn runs(script: &str, files: &Value) -> (Value, Value) {
    let response = server().execute(&json!({"script": script, "files": files}));
    assert_eq!(response.status, 200, "{}", response.body);
    (response.json()["result"].clone(), response.json()["files"].clone())
}

/// Runs `script` with `files` and expects a failure.
#[track_caller]
fn fails_with(script: &str, files: &Value, status: u16, kind: &str, error: &str) {
    let response = server().execute(&json!({"script": script, "files": files}));
    assert_eq!(response.failure(), (status, kind.to_owned(), error.to_owned()));
    assert!(response.json()["files"].is_null());
}

#[test]
fn files_are_written_before_the_script_starts() {
    let script = indoc! {r#"
        import csv, glob, json, os, pathlib
        import numpy as np
        import pandas as pd
        AT_THE_TOP = open("note.txt").read()
        def main():
            with open("data/table.csv", newline="") as file:
                rows = list(csv.reader(file))
            frame = pd.read_csv("data/table.csv")
            return [
                AT_THE_TOP,
                rows,
                frame.to_dict("list"),
                np.loadtxt("data/table.csv", delimiter=",", skiprows=1),
                pathlib.Path("raw").read_bytes(),
                list(open("raw", "rb").read()),
                json.load(open("deep/er/a.json")),
                sorted(os.listdir(".")),
                sorted(glob.glob("data/*.csv")),
                os.path.getsize("note.txt"),
                os.path.isdir("deep/er"),
                sorted(path.name for path in pathlib.Path("deep").iterdir()),
                open(os.path.abspath("note.txt")).readline(),
                sorted(map(str, pathlib.Path(".").rglob("*.json"))),
                [folder for folder, _, _ in os.walk("deep")],
            ]
    "#};
    let files = json!({
        "note.txt": "é\nline", "data/table.csv": "a,b\n1,2\n3,4\n", "raw": {"base64": "AP+A"}, "deep/er/a.json": "{\"x\": 1}",
    });
    let expected = json!([
        "é\nline", [["a", "b"], ["1", "2"], ["3", "4"]], {"a": [1, 3], "b": [2, 4]}, [[1.0, 2.0], [3.0, 4.0]],
        "AP+A", [0, 255, 128], {"x": 1}, ["data", "deep", "note.txt", "outputs", "raw"], ["data/table.csv"], 7, true,
        ["er"], "é\n", ["deep/er/a.json"], ["deep", "deep/er"],
    ]);
    assert_eq!(runs(script, &files), (expected, Value::Null));
}

#[test]
fn files_in_outputs_that_the_script_wrote_are_returned() {
    let script = indoc! {r#"
        import os, pathlib
        import pandas as pd
        def main():
            pd.DataFrame({"a": [1]}).to_csv("outputs/table.csv", index=False)
            pathlib.Path("outputs/text").write_text("é")
            with open("outputs/raw", "wb") as file:
                file.write(bytes([0, 255]))
            os.makedirs("outputs/plots/new")
            open("outputs/plots/new/empty", "x").close()
            os.mkdir("outputs/nothing")
            open("beside.txt", "w").write("stays")
            open("outputs/gone", "w").write("")
            os.remove("outputs/gone")
            return os.path.exists("beside.txt")
    "#};
    let files = json!({"outputs/given": "is not returned", "read.me": ""});
    let left = json!({
        "plots/new/empty": "", "raw": {"base64": "AP8="}, "table.csv": "a\n1\n", "text": "é",
    });
    assert_eq!(runs(script, &files), (json!(true), left));
    let response = server().run("def main(): open('outputs/a', 'w').write('b'); print('c')");
    assert_eq!(response.body, r#"{"result":null,"stdout":"c\n","files":{"a":"b"}}"#);
    let response = server().run("def main(): open('outputs/a', 'w').write('b'); raise ValueError");
    assert_eq!((response.status, &response.json()["files"]), (400, &Value::Null));
}

#[test]
fn files_that_the_script_did_not_close_are_returned() {
    let script = indoc! {r#"
        import sys
        LOG = open('outputs/log', 'w')
        def main():
            LOG.write('kept open')
            sys.stdout = open('outputs/printed', 'w')
            print('into a file')
    "#};
    let left = json!({"log": "kept open", "printed": "into a file\n"});
    assert_eq!(runs(script, &json!({})), (Value::Null, left));
}

#[test]
fn a_file_that_does_not_fit_on_the_disk_is_an_error_instead_of_a_part() {
    if lacks("files") {
        return not_run("files are in memory here");
    }
    let small = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_SCRATCH_MB", "1")]);
    let response = small.run(indoc! {r"
        LOG = open('outputs/log', 'wb', buffering=2 << 20)
        def main():
            LOG.write(b'x' * ((1 << 20) + 100))
    "});
    let (status, kind, error) = response.failure();
    assert_eq!((status, kind.as_str()), (400, "exception"));
    // The reason depends on what limits the directory: the size of a file, or of the file system.
    let reasons = ["File too large", "No space left on device"];
    let reason = error.strip_prefix("outputs/log could not be written: ");
    assert!(reason.is_some_and(|reason| reasons.contains(&reason)), "{error}");
}

#[test]
fn files_support_the_usual_operations() {
    let script = indoc! {r#"
        import io, os, shutil, zipfile
        def attempt(act):
            try:
                return act()
            except Exception as error:
                return type(error).__name__
        def main():
            with open("a", "w") as file:
                print("one", file=file)
            with open("a", "a") as file:
                file.write("two")
            with open("a", "r+") as file:
                file.seek(1)
                file.write("N")
                file.seek(0)
                whole = file.read()
            with open("b", "wb+") as file:
                file.write(b"0123456789")
                file.seek(-3, io.SEEK_END)
                end = file.read()
                file.truncate(4)
                file.seek(6)
                file.write(b"x")
            os.rename("b", "c")
            with zipfile.ZipFile("outputs/z.zip", "w") as archive:
                archive.writestr("inside", "packed")
            unbuffered = open("u", "wb", buffering=0)
            unbuffered.write(b"at once")
            shutil.copy("u", "copy")
            os.makedirs("x/y")
            os.rmdir("x/y")
            os.rename(src="copy", dst="x/copied")
            with zipfile.ZipFile("packed.zip", "w") as archive:
                archive.write("u")
            return [
                whole,
                end,
                open("c", "rb").read(),
                os.path.exists("b"),
                zipfile.ZipFile("outputs/z.zip").read("inside").decode(),
                open("u").read(),
                os.stat("c").st_size,
                list(os.scandir("outputs"))[0].name,
                open("a").mode,
                open("a", "rb").readable(),
                open("x/copied").read(),
                os.path.samefile("a", "u"),
                os.path.samefile("u", "./u"),
                os.access("x", os.W_OK),
                os.access("no", os.R_OK),
                os.stat("u").st_mtime > 1.6e9,
                attempt(lambda: os.rmdir("x")),
                [
                    attempt(lambda: open("none")),
                    attempt(lambda: open("a", "x")),
                    attempt(lambda: open("outputs")),
                    attempt(lambda: os.listdir("none")),
                    attempt(lambda: os.listdir("a")),
                    attempt(lambda: os.mkdir("outputs")),
                    attempt(lambda: os.remove("none")),
                    attempt(lambda: open("a").write("")),
                    attempt(lambda: open("a", "q")),
                ],
            ]
    "#};
    let (result, _) = runs(script, &json!({}));
    let expected = json!([
        "oNe\ntwo",
        "Nzg5",
        "MDEyMwAAeA==",
        false,
        "packed",
        "at once",
        7,
        "z.zip",
        "r",
        true,
        "at once",
        false,
        true,
        true,
        false,
        true,
        "OSError",
        [
            "FileNotFoundError",
            "FileExistsError",
            "IsADirectoryError",
            "FileNotFoundError",
            "NotADirectoryError",
            "FileExistsError",
            "FileNotFoundError",
            "UnsupportedOperation",
            "ValueError"
        ],
    ]);
    assert_eq!(result, expected);
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let rule = "use a relative path of at most 255 bytes and 8 parts that every system can write: no empty part, no space at the beginning or end of a part, no period at its end, no control character, none of \\ : < > \" | ? * and no device name such as NUL";
    for name in [
        "",
        "../a",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "./a",
        "a\u{0}",
        "a\\b",
        "C:/x.bat",
        "nul.txt",
        "a. ",
    ] {
        let response =
            server().execute(&json!({"script": "def main(): return 1", "files": {name: "x"}}));
        let (status, kind, error) = response.failure();
        assert_eq!((status, kind.as_str()), (400, "invalid_request"), "{name}");
        assert_eq!(error, format!("files: invalid file name `{name}`: {rule}"));
    }
    fails_with(
        "def main(): return 1",
        &json!({"outputs": ""}),
        400,
        "invalid_request",
        "files: `outputs` is reserved for the directory of returned files",
    );
    let body = r#"{"script": "def main(): return 1", "files": {"a": "", "a/b": ""}}"#;
    assert_eq!(
        server().post("application/json", body.as_bytes()).failure().2,
        "files: duplicate file name `a/b`, or one used as both a file and a directory"
    );
}

#[test]
fn a_file_that_exceeds_a_limit_is_named() {
    let none = json!({});
    let most = server().get("/about").json()["limits"]["max_files_bytes"].as_u64().unwrap();
    fails_with(
        &formatdoc! {r#"
            def main():
                for name in 'ab':
                    open(f'outputs/{{name}}', 'wb').write(bytes({most} - 9))
        "#},
        &none,
        400,
        "result_too_large",
        &format!("outputs/b does not fit; the limit for all files together is {most} bytes"),
    );
    fails_with(
        indoc! {r#"
            def main():
                for number in range(101):
                    open(f'outputs/{number:03}', 'w')
        "#},
        &none,
        400,
        "result_too_large",
        "outputs/100 exceeds the limit of 100 files",
    );
    fails_with(
        indoc! {r#"
            import os
            def main(): os.makedirs('outputs' + '/d' * 8); open('outputs' + '/d' * 8 + '/e', 'w')
        "#},
        &none,
        400,
        "result_too_large",
        "outputs/d/d/d/d/d/d/d/d is nested too deeply",
    );
    fails_with(
        "def main(): open('outputs/a\\nb', 'w')",
        &none,
        400,
        "not_json",
        "outputs/a\nb has a name that cannot be returned",
    );
    let all = format!("def main(): open('outputs/all', 'w').write('x' * {most})");
    let (_, files) = runs(&all, &none);
    assert_eq!(files["all"].as_str().unwrap().len() as u64, most);
}

#[test]
fn large_files_are_complete() {
    let text = "0123456789abcdef".repeat(1 << 18);
    let script = indoc! {r#"
        import hashlib
        def main():
            data = open('large', 'rb').read()
            return [len(data), hashlib.sha256(data).hexdigest()]
    "#};
    let (result, _) = runs(script, &json!({"large": text}));
    let digest = "3cab7815c40973b8fb036c7a2a69b3649882622a4a0a2f1a980efa4ef8545577";
    assert_eq!(result, json!([4 << 20, digest]));
}

#[test]
fn files_are_not_visible_to_the_next_request() {
    let list = indoc! {r#"
        import os
        def main(): return sorted(os.listdir('.'))
    "#};
    let leave = indoc! {r#"
        import os
        def main(): open('left', 'w').write('x'); return sorted(os.listdir('.'))
    "#};
    assert_eq!(runs(leave, &json!({"mine": ""})).0, json!(["left", "mine", "outputs"]));
    for _ in 0..3 {
        assert_eq!(runs(list, &json!({})), (json!(["outputs"]), Value::Null));
    }
}

#[test]
fn a_script_changes_modes_times_and_sizes_of_its_files() {
    if lacks("files") {
        return not_run("a script cannot open files here");
    }
    let script = indoc! {r#"
        import os, pathlib, shutil, stat

        def main():
            file = pathlib.Path("file")
            file.write_text("content")
            shutil.copy(file, "copied")
            os.truncate(file, 4)
            try:
                file.chmod(0o640)
                os.utime(file, (5, 7))
                shutil.copy2(file, "copy")
                shutil.copytree(".", "tree", ignore=lambda *_: ["tree", "outputs"])
            except PermissionError as error:
                return error.strerror
            found = os.stat("tree/copy")
            return [oct(stat.S_IMODE(found.st_mode)), found.st_mtime, found.st_size]
    "#};
    let expected = if lacks("modes") {
        json!("changing the mode or the times of a file is not available in this sandbox")
    } else {
        json!(["0o640", 7.0, 4])
    };
    assert_eq!(common::server().run(script).json()["result"], expected);
}

/// People and models write `savefig("plot.png")`.
#[test]
fn pictures_that_the_script_made_in_its_working_directory_come_back() {
    let script = indoc! {r#"
        import os

        def main():
            for name in ("plot.png", "Photo.JPG", "table.csv", "outputs/both.svg", "both.svg"):
                with open(name, "w") as file:
                    file.write(name)
            with open("changed.gif", "w") as file:
                file.write("new")
            return sorted(os.listdir())
    "#};
    let files = json!({"given.png": "given", "changed.gif": "old"});
    let (_, returned) = runs(script, &files);
    assert_eq!(
        returned,
        json!({
            "Photo.JPG": "Photo.JPG",
            "both.svg": "outputs/both.svg",
            "changed.gif": "new",
            "plot.png": "plot.png",
        })
    );
}

#[test]
fn plots_come_back_without_a_word_on_stderr() {
    let script = indoc! {r#"
        import matplotlib.pyplot as plt

        def main():
            plt.plot([1, 2, 3], [-4, 5, 6], label="a")
            plt.plot([1, 2, 3], [6, -5, 4], label="b")
            plt.title("$\\alpha^2$")
            plt.legend()
            plt.show()
            plt.bar(["x", "y"], [1, 2])
            plt.savefig("bars.svg")
            plt.savefig("bars.pdf")
            return plt.get_backend()
    "#};
    let body = server().run(script).json();
    assert_eq!((&body["result"], &body["stderr"]), (&json!("agg"), &Value::Null), "{body}");
    let files = body["files"].as_object().unwrap();
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["bars.pdf", "bars.svg", "figure-1.png", "figure-2.png"]
    );
    assert!(files["bars.svg"].as_str().unwrap().contains("</svg>"));
}

#[test]
fn a_workbook_is_read() {
    let script = indoc! {r#"
        import zipfile
        import pandas as pd

        MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
        DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        PACKAGE = "http://schemas.openxmlformats.org/package/2006"
        SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
        PARTS = {
            "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Override PartName="/xl/workbook.xml" ContentType="{SHEET}"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="a" Type="{DOCUMENT}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{MAIN}"><sheets><sheet name="S" sheetId="1" xmlns:r="{DOCUMENT}" r:id="b"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="b" Type="{DOCUMENT}/worksheet" Target="sheet.xml"/></Relationships>',
            "xl/sheet.xml": f'<worksheet xmlns="{MAIN}"><sheetData><row><c t="str"><v>a</v></c></row><row><c><v>7</v></c></row></sheetData></worksheet>',
        }

        def main():
            with zipfile.ZipFile("book.xlsx", "w") as book:
                for name, text in PARTS.items():
                    book.writestr(name, text)
            return pd.read_excel("book.xlsx")
    "#};
    let body = server().run(script).json();
    assert_eq!(body["result"], json!([{"a": 7}]), "{body}");
}

/// openpyxl writes each sheet to a temporary file, which the tier `rlimits` does not have.
#[test]
fn a_workbook_is_written() {
    let script = indoc! {r#"
        import pandas as pd

        def main():
            pd.DataFrame({"a": [1, 2]}).to_excel("outputs/book.xlsx", index=False)
            return pd.read_excel("outputs/book.xlsx")
    "#};
    if common::declared_tier() == "rlimits" {
        return not_run("tempfile does not work here");
    }
    let body = server().run(script).json();
    assert_eq!(body["result"], json!([{"a": 1}, {"a": 2}]), "{body}");
}

#[test]
fn collect_names_the_files_that_come_back_besides_outputs() {
    let script = indoc! {r#"
        import os

        def main():
            os.makedirs("data/deep")
            for name in ("a.csv", "a.png", "data/b.csv", "data/deep/c.csv", "outputs/d.txt", "given.csv"):
                with open(name, "a") as file:
                    file.write(name)
            return os.path.basename(__file__)
    "#};
    let returned = |collect: Value| {
        let files = json!({"given.csv": "old ", "kept.csv": "old", "outputs/kept.txt": "old"});
        let body = json!({"script": script, "files": files, "collect": collect});
        let body = server().execute(&body).json();
        assert_eq!(body["result"], "script.py", "{body}");
        body["files"].as_object().unwrap().clone()
    };
    let names = |collect: Value| returned(collect).keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(json!(null)), ["a.png", "d.txt"]);
    assert_eq!(names(json!([])), ["d.txt"]);
    assert_eq!(names(json!(["*.CSV"])), ["a.csv", "d.txt", "given.csv"]);
    assert_eq!(names(json!(["data/**"])), ["d.txt", "data/b.csv", "data/deep/c.csv"]);
    assert_eq!(returned(json!(["*"]))["given.csv"], "old given.csv");
}

#[test]
fn a_pattern_that_leaves_the_working_directory_is_refused() {
    for (collect, error) in [
        (json!("*.csv"), "collect must be an array of patterns such as \"*.csv\""),
        (
            json!(["../*"]),
            "collect: invalid pattern `../*`: use a relative path of at most 255 bytes and 8 parts, without an empty part, `.` or `..`",
        ),
    ] {
        let body = json!({"script": "def main(): 1", "collect": collect});
        assert_eq!(server().execute(&body).json()["error"], error);
    }
}

#[test]
fn the_user_of_a_script_has_a_name_where_each_worker_has_a_root_of_its_own() {
    let script = indoc! {r#"
        import getpass, grp, os, pathlib, pwd, tarfile

        def main():
            pathlib.Path("a").touch()
            with tarfile.open("a.tar", "w") as archive:
                archive.add("a")
                owner = archive.getmember("a").uname
            return [
                pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name, pathlib.Path("a").owner(), owner,
                getpass.getuser(), pwd.getpwuid(0).pw_name,
            ]
    "#};
    if common::declared_tier() != "namespaces" {
        return not_run("the files of the host are in use, or none");
    }
    assert_eq!(
        server().run(script).json()["result"],
        json!(["script", "script", "script", "script", "script", "root"])
    );
}

#[test]
fn tmp_is_the_scratch_directory_where_each_worker_has_a_root_of_its_own() {
    let script = indoc! {r#"
        import os, sys

        def main():
            if any(place.startswith("/tmp") for place in sys.path if place != os.getcwd()):
                return "libraries"
            with open("/tmp/note", "w") as file:
                file.write("mine")
            return [os.path.realpath("/tmp") == os.getcwd(), open("note").read()]
    "#};
    // Under gVisor, scratch directories have different paths in one root.
    if common::declared_tier() != "namespaces" || lacks("landlock") {
        return not_run("/tmp is not the script's own here");
    }
    let result = server().run(script).json()["result"].clone();
    if result == "libraries" {
        return not_run("the interpreter or its packages are in /tmp");
    }
    assert_eq!(result, json!([true, "mine"]));
}
