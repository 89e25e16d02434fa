//! The definition of the command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::settings::SETTINGS;

/// Runs main() of untrusted Python scripts in a sandbox and returns the result as JSON.
///
/// Without a command, mainbox serves HTTP. Every setting can be given as an option or as an environment variable; an
/// option takes precedence.
#[derive(Debug, Parser)]
#[command(name = "mainbox", version)]
struct Definition {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What mainbox does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs one script and prints the response body; exits with 0 if main() returned, else with 1
    Run(RunArguments),
    /// Prints the isolation layers of this host and the results of the self-test; exits with 0 if the self-test passes,
    /// else with 1
    Doctor,
    /// Writes a bytecode archive of the preloaded modules to FILE, for --archive
    ///
    /// For image builds: the modules are imported without a sandbox.
    Archive {
        /// The file to write, next to the packages, where the interpreter may read it
        file: PathBuf,
    },
    /// Serves the Model Context Protocol over standard input and output, for a desktop client that starts it
    Mcp,
    /// Checks the health of the service on this host; exits with 0 if it is healthy, else with 1
    Health,
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Prints the manual page mainbox(1)
    Man,
}

/// The arguments of `mainbox run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The script, or `-` for standard input
    pub(super) script: PathBuf,
    /// JSON to pass to main()
    #[arg(long, value_name = "JSON")]
    pub(super) input: Option<String>,
    /// A file with one JSON value per line: main() runs once for each, and each result is printed as a line of JSON
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    pub(super) inputs: Option<PathBuf>,
    /// A file to read the standard input of the script from
    #[arg(long, value_name = "FILE")]
    pub(super) stdin: Option<PathBuf>,
    /// `main` calls the function main, `script` runs the script as a program [default: main]
    #[arg(long, value_name = "ENTRY")]
    pub(super) entry: Option<String>,
    /// A file to copy to the working directory of the script; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,
    /// A pattern for files that come back besides those in outputs/, for example '*.csv'; can be repeated [default:
    /// pictures]
    #[arg(long, value_name = "PATTERN")]
    pub(super) collect: Vec<String>,
    /// A new or empty directory for the files that come back; with --inputs, each input gets a subdirectory: 0, 1, ...
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) outputs: Option<PathBuf>,
}

/// A parsed command line.
#[derive(Debug)]
pub struct Arguments {
    /// What to do; `None` serves.
    pub command: Option<Command>,
    /// The settings that were given as options, by the name of their setting.
    pub settings: BTreeMap<&'static str, String>,
}

impl Arguments {
    /// Parses the command line of the process.
    ///
    /// # Errors
    /// clap's message, which is also how `--help` and `--version` end.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
        let mut matches = definition().try_get_matches_from(arguments)?;
        let settings = settings(&matches);
        let Definition { command } = Definition::from_arg_matches_mut(&mut matches)?;
        Ok(Arguments { command, settings })
    }
}

/// The command line as clap defines it: the commands, and an option for each setting.
pub(super) fn definition() -> clap::Command {
    SETTINGS.iter().fold(Definition::command(), |command, setting| {
        let help = format!(
            "{} [{}; default: {}] [env: {}]",
            sentence(setting.meaning),
            setting.accepts().replace('`', ""),
            setting.default_text().replace('`', ""),
            setting.name,
        );
        command.arg(
            Arg::new(setting.name)
                .long(setting.flag())
                .value_name(setting.value)
                .help(help)
                .help_heading("Settings")
                .allow_hyphen_values(true)
                .global(true)
                .hide_short_help(true),
        )
    })
}

/// The meaning of a setting as a sentence without backticks, for a terminal.
fn sentence(meaning: &str) -> String {
    let plain = meaning.replace('`', "");
    let mut letters = plain.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect::<String>())
}

fn settings(matches: &ArgMatches) -> BTreeMap<&'static str, String> {
    let given = |name| matches.try_get_one::<String>(name).ok().flatten().cloned();
    SETTINGS.iter().filter_map(|setting| Some((setting.name, given(setting.name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(line.split(' ').map(OsString::from)).unwrap()
    }

    #[test]
    fn every_setting_is_an_option_of_the_service_and_of_every_command() {
        for command in ["", " doctor", " run job.py", " health"] {
            let arguments = parse(&format!("mainbox --port 9000{command} --timeout-seconds 5"));
            let expected = [("MAINBOX_TIMEOUT_SECONDS", "5"), ("PORT", "9000")];
            let expected = expected.map(|(name, value)| (name, String::from(value)));
            assert_eq!(arguments.settings, BTreeMap::from(expected), "{command}");
        }
        assert!(parse("mainbox").settings.is_empty());
    }

    #[test]
    fn help_shows_the_range_the_default_and_the_variable() {
        let help = definition().render_long_help().to_string();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains(
                "--queue <COUNT> Number of requests that may wait for a worker; when the queue is full, further requests get 503 busy [a whole number from 0 to 10000; default: 64] [env: MAINBOX_QUEUE]"
            ),
            "{help}"
        );
    }
}
