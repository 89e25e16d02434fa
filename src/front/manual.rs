//! What the definition of the command line is good for besides reading one: completions and the manual.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::shell::Arguments;
use crate::variables::VARIABLES;

/// Writes a script by which `shell` completes our command line.
///
/// # Errors
/// When it cannot be written.
pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mainbox", &mut text);
    out.write_all(&text)
}

/// Writes mainbox(1): every command with its options, and every setting.
///
/// # Errors
/// When it cannot be written.
pub(super) fn manual(out: &mut dyn Write) -> io::Result<()> {
    let mut command = Arguments::command();
    command.build();
    let page = Man::new(command.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    commands.for_each(|command| describe(command, &mut roff));
    roff.control("SH", ["ENVIRONMENT"]);
    for variable in VARIABLES {
        roff.control("TP", []);
        roff.text([bold(variable.name)]);
        roff.text([roman(format!("{} (default: {})", variable.meaning, variable.default))]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [
        ("0", "The service was told to end and has; the script succeeded; the service is healthy."),
        ("1", "It could not be started; the script failed; the service is not healthy."),
        ("2", "A setting or an argument is bad."),
    ] {
        roff.control("TP", []);
        roff.text([bold(status)]);
        roff.text([roman(meaning)]);
    }
    roff.to_writer(out)
}

/// A command with its arguments.
fn describe(command: &Command, roff: &mut Roff) {
    let usage = command.clone().render_usage().to_string();
    roff.control("TP", []);
    roff.text([bold(usage.trim_start_matches("Usage: "))]);
    roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
    for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
        let values = argument.get_value_names().unwrap_or_default().join(" ");
        let name =
            argument.get_long().map_or_else(|| values.clone(), |long| format!("--{long} {values}"));
        roff.control("RS", []);
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(argument.get_help().map(ToString::to_string).unwrap_or_default())]);
        roff.control("RE", []);
    }
}
