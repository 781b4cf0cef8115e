//! Tables in plain text.

use std::fmt;

/// A table: the first column is left-aligned, the others right-aligned.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column heads.
    pub fn new<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Self {
        Self { header: Vec::from(header.map(str::to_owned)), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the header's columns are shown as well.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(Vec::from(cells));
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0);
        (0..columns)
            .map(|column| {
                let cells = self.rows.iter().chain([&self.header]).filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        write_row(formatter, &self.header, &widths)?;
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        writeln!(formatter, "  {}", rule.join("  "))?;
        self.rows.iter().try_for_each(|row| write_row(formatter, row, &widths))
    }
}

fn write_row(formatter: &mut fmt::Formatter<'_>, row: &[String], widths: &[usize]) -> fmt::Result {
    let mut line = String::new();
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        if column == 0 {
            line.push_str(&format!("  {cell:<width$}"));
        } else {
            line.push_str(&format!("  {cell:>width$}"));
        }
    }
    writeln!(formatter, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["runtime", "ms"]);
        table.row(["kata".to_owned(), "1234".to_owned()]);
        table.row(["runc".to_owned(), "5".to_owned()]);
        let expected = "  runtime    ms\n  ───────  ────\n  kata     1234\n  runc        5\n";
        assert_eq!(table.to_string(), expected);
    }
}
