//! Shell completions and the manual page, generated from the definition of the command line.

use std::io::{self, Write};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::arguments::definition;
use crate::config::settings::SETTINGS;

/// Writes a completion script for `shell`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut definition(), "mainbox", &mut text);
    out.write_all(&text)
}

/// Writes mainbox(1): every command with its options, every setting and the exit codes.
///
/// # Errors
/// When it cannot be written.
pub(super) fn manual(out: &mut dyn Write) -> io::Result<()> {
    let mut command = definition();
    command.build();
    let page = Man::new(command.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([bold("mainbox"), roman(" [OPTIONS] [COMMAND]")]);
    synopsis.to_writer(out)?;
    page.render_description_section(out)?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    commands.for_each(|command| describe(command, &mut roff));
    roff.control("SH", ["SETTINGS"]);
    for setting in SETTINGS {
        roff.control("TP", []);
        roff.text([bold(format!("--{}, {}", setting.flag(), setting.name))]);
        let (meaning, accepts) = (setting.meaning, setting.accepts());
        let text = format!("{meaning}: {accepts} (default: {})", setting.default_text());
        roff.text([roman(text.replace('`', ""))]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [
        ("0", "The service shut down on request; the script succeeded; the service is healthy."),
        ("1", "The service could not start; the script failed; the service is not healthy."),
        ("2", "A setting or an argument is invalid."),
    ] {
        roff.control("TP", []);
        roff.text([bold(status)]);
        roff.text([roman(meaning)]);
    }
    roff.to_writer(out)
}

/// Describes a command and its arguments.
fn describe(command: &Command, roff: &mut Roff) {
    let usage = command.clone().render_usage().to_string();
    roff.control("TP", []);
    roff.text([bold(usage.trim_start_matches("Usage: "))]);
    roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
    for argument in command
        .get_arguments()
        .filter(|argument| !argument.is_global_set() && argument.get_id() != "help")
    {
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
