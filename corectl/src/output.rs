//! What leaves the program: data on stdout, everything else on stderr.
//!
//! Three forms: tables for people, JSON for programs, names alone with `--quiet`. Colour is only
//! ever added to words that say the same without it. A reader that goes away ends the command in
//! silence ([`Failure::BrokenPipe`]). Streams are flushed after each batch, the rest at the end.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{ErrorView, Failure};
use crate::text::printable;

/// The form of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Json,
    Quiet,
}

/// A meaning that has a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Waiting,
    Bad,
    Faint,
    Heading,
}

/// A cell of a table, or a word of a line.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text, made safe for a terminal.
    pub(crate) fn new(text: &str, tone: Tone) -> Self {
        Self {
            text: printable(text).into_owned(),
            tone,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref(), Tone::Plain)
    }
}

/// Rows of aligned columns. An empty cell is shown as "-".
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let headings = headings.map(|heading| Cell::new(heading, Tone::Heading));
        Self {
            rows: vec![headings.into()],
        }
    }

    /// A list of facts, each a name and a value, without headings.
    pub(crate) fn facts() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Adds a fact.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([Cell::new(name, Tone::Heading), value.into()]);
    }

    fn lines(&self, colour: bool) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |cell: &Cell| cell.text.chars().count().max(1);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(width).max().unwrap_or(0)
            })
            .collect();
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for (index, cell) in row.iter().enumerate() {
                let text = if cell.text.is_empty() {
                    "-"
                } else {
                    &cell.text
                };
                line.push_str(&paint(text, cell.tone, colour));
                if index + 1 < row.len() {
                    let padding = widths[index] - width(cell) + 2;
                    line.extend(std::iter::repeat_n(' ', padding));
                }
            }
            line
        };
        self.rows.iter().map(line).collect()
    }
}

/// The way out for data.
#[derive(Debug)]
pub(crate) struct Output {
    form: Form,
    colour: bool,
    terminal: bool,
    writer: BufWriter<io::Stdout>,
}

impl Output {
    /// As the options and the environment say.
    pub(crate) fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            form: match (global.json, global.quiet) {
                (true, _) => Form::Json,
                (false, true) => Form::Quiet,
                (false, false) => Form::Table,
            },
            colour: colour_from_environment(terminal),
            terminal,
            writer: BufWriter::new(io::stdout()),
        }
    }

    /// The form asked for.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// A person is looking.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// One line of plain text.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        let text = printable(text);
        writeln!(self.writer, "{text}").map_err(stdout_failed)
    }

    /// One line of cells, separated by two spaces; empty ones are left out.
    pub(crate) fn cells(&mut self, cells: &[Cell]) -> Result<(), Failure> {
        let shown = cells.iter().filter(|cell| !cell.text.is_empty());
        let words: Vec<String> = shown
            .map(|cell| paint(&cell.text, cell.tone, self.colour))
            .collect();
        writeln!(self.writer, "{}", words.join("  ")).map_err(stdout_failed)
    }

    /// A table; nothing at all if it has only headings, which is said on stderr.
    pub(crate) fn table(&mut self, table: &Table, nothing: &str) -> Result<(), Failure> {
        if table.rows.len() <= 1 && !nothing.is_empty() {
            note(nothing);
            return Ok(());
        }
        for line in table.lines(self.colour) {
            writeln!(self.writer, "{line}").map_err(stdout_failed)?;
        }
        Ok(())
    }

    /// One JSON document on a line of its own.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::io("write JSON", io::Error::other(error)))?;
        writeln!(self.writer, "{text}").map_err(stdout_failed)
    }

    /// Data byte for byte, and a line break if it has none. To a terminal only harmless text goes.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = if !self.terminal {
            self.writer.write_all(bytes)
        } else if let Ok(text) = std::str::from_utf8(bytes) {
            text.lines().try_for_each(|line| {
                let line = line.replace('\t', "    ");
                writeln!(self.writer, "{}", printable(&line))
            })
        } else {
            note(&format!(
                "{} bytes that are no text; redirect the output to have them",
                bytes.len()
            ));
            return Ok(());
        };
        written.map_err(stdout_failed)?;
        if !self.terminal && !bytes.ends_with(b"\n") {
            writeln!(self.writer).map_err(stdout_failed)?;
        }
        Ok(())
    }

    /// Hands everything to the reader.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(stdout_failed)
    }

    /// Reports a failure on stderr, in the form asked for. A broken pipe is nobody's business.
    pub(crate) fn report(&self, failure: &Failure) {
        #[derive(Serialize)]
        struct Report {
            error: ErrorView,
        }
        if matches!(failure, Failure::BrokenPipe | Failure::Interrupted) {
            return;
        }
        let text = match self.form {
            Form::Json => {
                let report = Report {
                    error: failure.view(),
                };
                let line = serde_json::to_string(&report);
                line.map_or_else(|_| failure.lines(false), |line| line + "\n")
            }
            Form::Table | Form::Quiet => {
                failure.lines(colour_from_environment(io::stderr().is_terminal()))
            }
        };
        to_stderr(&text);
    }
}

/// Ends the program in silence when the reader of stdout goes away: for streams, which might not
/// write for hours and so not notice (`corectl events tail | grep -m 1 …`). Not for commands that
/// change something: those finish.
pub(crate) fn end_with_reader() {
    let watch = || loop {
        let stdout = io::stdout();
        // No events asked for: only the reader's end wakes it. A file never does.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        match poll(&mut watched, None) {
            Err(Errno::INTR) => {}
            Ok(_)
                if watched[0]
                    .revents()
                    .intersects(PollFlags::ERR | PollFlags::HUP) =>
            {
                #[expect(clippy::exit, reason = "the main thread waits for the core")]
                std::process::exit(i32::from(Exit::Success.number()));
            }
            // Whatever this is, writing will tell.
            Ok(_) | Err(_) => return,
        }
    };
    // Without the thread the next write notices.
    std::thread::Builder::new()
        .name("stdout-reader".to_owned())
        .spawn(watch)
        .ok();
}

/// A remark for the person, on stderr.
pub(crate) fn note(text: &str) {
    to_stderr(&format!("{}\n", printable(text)));
}

/// Now, by this machine.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

fn to_stderr(text: &str) {
    // If stderr is closed there is nobody left to tell.
    io::stderr().write_all(text.as_bytes()).ok();
}

fn stdout_failed(error: io::Error) -> Failure {
    Failure::io("write to standard output", error)
}

fn paint(text: &str, tone: Tone, colour: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Waiting => "33",
        Tone::Bad => "1;31",
        Tone::Faint => "2",
        Tone::Heading => "1",
        Tone::Plain => "",
    };
    if colour && !code.is_empty() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn colour_from_environment(terminal: bool) -> bool {
    let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    wants_colour(
        terminal,
        variable("NO_COLOR").as_deref(),
        variable("CLICOLOR_FORCE").as_deref(),
        variable("TERM").as_deref(),
    )
}

/// `NO_COLOR` (not empty) forbids, `CLICOLOR_FORCE` (not empty, not 0) demands, else a terminal that
/// is not dumb decides.
fn wants_colour(
    terminal: bool,
    no_color: Option<&str>,
    clicolor_force: Option<&str>,
    term: Option<&str>,
) -> bool {
    if no_color.is_some_and(|value| !value.is_empty()) {
        return false;
    }
    if clicolor_force.is_some_and(|value| !value.is_empty() && value != "0") {
        return true;
    }
    terminal && term != Some("dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_follows_no_color_then_force_then_the_terminal() {
        let table = [
            (false, None, None, None, false),
            (true, None, None, Some("xterm"), true),
            (true, None, None, Some("dumb"), false),
            (true, Some("1"), None, None, false),
            (true, Some(""), None, None, true),
            (false, None, Some("1"), None, true),
            (false, None, Some("0"), None, false),
            (true, Some("1"), Some("1"), None, false),
        ];
        for (terminal, no_color, force, term, expected) in table {
            let wanted = wants_colour(terminal, no_color, force, term);
            assert_eq!(
                wanted, expected,
                "{terminal} {no_color:?} {force:?} {term:?}"
            );
        }
    }

    #[test]
    fn columns_align_whatever_their_colour_and_lines_do_not_end_in_spaces() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a".into(), Cell::new("started", Tone::Good)]);
        table.row(["längerer".into(), "".into()]);
        assert_eq!(
            table.lines(false),
            ["NAME      STATE", "a         started", "längerer  -"]
        );
        let coloured = table.lines(true);
        assert_eq!(coloured[1], "a         \u{1b}[32mstarted\u{1b}[0m");
    }

    #[test]
    fn a_cell_cannot_break_its_table() {
        let mut table = Table::facts();
        table.fact("why", "line one\nline two\u{1b}[2J");
        assert_eq!(table.lines(false), ["why  line one\\nline two\\u{1b}[2J"]);
    }
}
