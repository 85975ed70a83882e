//! What commands print: tables for people, JSON for programs.

use std::io::{ErrorKind, Write};

use anyhow::Result;
use serde::Serialize;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints a text that may be long. Whoever reads it may stop reading.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A table: columns at least 6 wide, 3 blanks apart.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count() + 3)
            .max()
            .unwrap_or(0)
            .max(6)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: String = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text
}

/// A warning for a person, on standard error.
pub(crate) fn warn(text: &str) {
    eprintln!("WARNING: {text}");
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_three() {
        let rows = [
            vec!["a".to_owned(), "b".to_owned()],
            vec!["longer name".to_owned(), "c".to_owned()],
        ];
        assert_eq!(
            table(&["N", "MESH"], &rows),
            "N             MESH\na             b\nlonger name   c\n"
        );
    }

    #[test]
    fn columns_are_at_least_six_wide() {
        assert_eq!(table(&["A", "B"], &[]), "A     B\n");
    }
}
