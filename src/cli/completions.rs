//! `worktx completions` and `worktx man`.
//!
//! # Limitations
//! Both are made from the same texts as `--help`.

use clap::CommandFactory as _;

use super::args::{Cli, CompletionsArgs};
use super::{exit, output};
use crate::coordinator::error::Failure;

/// Prints a shell's completions.
pub(super) fn shell(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "worktx", &mut text);
    output::write(|out| std::io::Write::write_all(out, &text))?;
    Ok(exit::OK)
}

/// Prints the manual page: the command, then each subcommand.
pub(super) fn man() -> Result<u8, Failure> {
    let mut text = Vec::new();
    let mut command = Cli::command();
    command.build();
    let rendered = || -> std::io::Result<()> {
        let page = clap_mangen::Man::new(command.clone());
        page.render(&mut text)?;
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_display_name().unwrap_or_else(|| sub.get_name()).replace('-', " ");
            let page = clap_mangen::Man::new(sub.clone());
            text.extend_from_slice(format!(".SH {}\n", name.to_uppercase()).as_bytes());
            page.render_description_section(&mut text)?;
            page.render_options_section(&mut text)?;
        }
        Ok(())
    };
    let mut rendered = rendered;
    rendered().map_err(Failure::io("making the manual page"))?;
    output::write(|out| std::io::Write::write_all(out, &text))?;
    Ok(exit::OK)
}
