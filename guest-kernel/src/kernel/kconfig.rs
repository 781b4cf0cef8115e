//! Looks up in the kernel's Kconfig files why an option was refused.
//!
//! This reads just enough of the language (Documentation/kbuild/kconfig-language.rst in the kernel's source) to find an
//! option's definition and the conditions around it: `depends on`, and enclosing `if` and `menu` blocks, across `source`.

use std::fs;
use std::path::Path;

/// Files include each other no deeper than this in any kernel; a loop ends here.
const MAX_DEPTH: usize = 16;

/// Says which conditions of `option` name options that are off. `is_on` tells whether an option is set.
pub(super) fn explain(source: &Path, option: &str, is_on: &dyn Fn(&str) -> bool) -> String {
    let mut search = Search { source, option, conditions: Vec::new(), definitions: Vec::new() };
    search.file("Kconfig", 0);
    if search.definitions.is_empty() {
        return format!("no Kconfig file of this kernel defines {option}");
    }
    let unmet: Vec<String> =
        search.definitions.iter().flatten().filter_map(|text| unmet(text, is_on)).collect();
    if unmet.is_empty() {
        return "no dependency is missing, so another option selects or excludes it".to_owned();
    }
    unmet.join("; ")
}

/// A condition with those of its options that are off, or `None` when all are on.
fn unmet(condition: &str, is_on: &dyn Fn(&str) -> bool) -> Option<String> {
    let off: Vec<&str> = options_in(condition).filter(|option| !is_on(option)).collect();
    (!off.is_empty()).then(|| format!("it depends on `{condition}`, of which {} not set", are(&off)))
}

fn are(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(", "))
}

/// The option names in an expression. Constants are written in lower case or quoted.
fn options_in(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with(|first: char| first.is_ascii_uppercase() || first.is_ascii_digit()))
        .filter(|word| word.chars().any(|character| character.is_ascii_uppercase()))
}

struct Search<'a> {
    source: &'a Path,
    option: &'a str,
    /// Conditions of the blocks around the current line; an inner block with none has an empty text.
    conditions: Vec<String>,
    /// For each definition of the option, all conditions that apply to it.
    definitions: Vec<Vec<String>>,
}

impl Search<'_> {
    fn file(&mut self, name: &str, depth: usize) {
        let Ok(text) = fs::read_to_string(self.source.join(name)) else { return };
        if depth > MAX_DEPTH {
            return;
        }
        let outside = self.conditions.len();
        let mut place = Place::Elsewhere;
        for line in joined_lines(&text) {
            let (keyword, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
            let rest = rest.trim();
            match keyword {
                "source" => self.file(&rest.trim_matches('"').replace("$(SRCARCH)", "x86"), depth + 1),
                "config" | "menuconfig" => place = self.define(rest),
                "if" => {
                    self.conditions.push(rest.to_owned());
                    place = Place::Elsewhere;
                }
                "menu" | "choice" => {
                    self.conditions.push(String::new());
                    place = Place::Block;
                }
                "endif" | "endmenu" | "endchoice" => {
                    self.conditions.pop();
                    place = Place::Elsewhere;
                }
                "comment" => place = Place::Elsewhere,
                "depends" => self.depend(&place, rest.trim_start_matches("on").trim()),
                _ => {}
            }
        }
        self.conditions.truncate(outside);
    }

    fn define(&mut self, name: &str) -> Place {
        if name != self.option {
            return Place::Elsewhere;
        }
        self.definitions.push(self.conditions.iter().filter(|text| !text.is_empty()).cloned().collect());
        Place::Definition
    }

    fn depend(&mut self, place: &Place, condition: &str) {
        match place {
            Place::Elsewhere => {}
            Place::Definition => {
                if let Some(conditions) = self.definitions.last_mut() {
                    conditions.push(condition.to_owned());
                }
            }
            Place::Block => {
                if let Some(block) = self.conditions.last_mut() {
                    let and = if block.is_empty() { "" } else { " && " };
                    block.push_str(and);
                    block.push_str(condition);
                }
            }
        }
    }
}

/// Whose attributes the current lines are.
enum Place {
    Definition,
    Block,
    Elsewhere,
}

/// The lines of a file, with those that end in a backslash joined to the next.
fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(start) => pending.push_str(start),
            None => lines.push(std::mem::take(&mut pending) + line),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("arch/x86")).unwrap();
        let root = "config LOOSE\n\tbool \"no conditions\"\n\nsource \"arch/$(SRCARCH)/Kconfig\"\n\
            menu \"Devices\"\n\tdepends on BUS\n\nif MISC && \\\n   MORE\nsource \"fs\"\nendif\nendmenu\n\
            config AFTER\n\tdepends on NET\n";
        fs::write(tree.path().join("Kconfig"), root).unwrap();
        fs::write(tree.path().join("arch/x86/Kconfig"), "config PROCESSOR\n\tdepends on SMP || UP\n")
            .unwrap();
        let inner =
            "config EROFS\n\tbool\n\tdepends on BLOCK\n\thelp\n\t  text\n\nconfig OTHER\n\tdepends on TEA\n";
        fs::write(tree.path().join("fs"), inner).unwrap();
        tree
    }

    fn reason(option: &str, on: &[&str]) -> String {
        explain(tree().path(), option, &|name| on.contains(&name))
    }

    #[test]
    fn a_missing_dependency_is_named() {
        assert_eq!(reason("PROCESSOR", &["SMP"]), "it depends on `SMP || UP`, of which UP is not set");
    }

    #[test]
    fn conditions_of_enclosing_blocks_in_other_files_count() {
        let reason = reason("EROFS", &["BLOCK", "MORE"]);
        assert!(reason.contains("`BUS`, of which BUS is not set"), "{reason}");
        assert!(reason.contains("of which MISC is not set"), "{reason}");
        assert!(!reason.contains("TEA") && !reason.contains("`BLOCK`"), "{reason}");
    }

    #[test]
    fn a_block_ends_where_it_ends() {
        assert_eq!(reason("AFTER", &[]), "it depends on `NET`, of which NET is not set");
    }

    #[test]
    fn an_unknown_option_and_one_without_missing_dependencies_are_told_apart() {
        assert_eq!(reason("ABSENT", &[]), "no Kconfig file of this kernel defines ABSENT");
        assert!(reason("LOOSE", &[]).starts_with("no dependency is missing"));
    }

    #[test]
    fn a_file_that_includes_itself_ends() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("Kconfig"), "source \"Kconfig\"\nconfig A\n").unwrap();
        assert!(explain(tree.path(), "A", &|_| true).starts_with("no dependency is missing"));
    }
}
