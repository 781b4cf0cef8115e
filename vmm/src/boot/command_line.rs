//! The kernel command line.

use std::fmt::Write;

/// The longest command line that Linux takes on x86, its final zero included (`COMMAND_LINE_SIZE`).
const LIMIT: usize = 2048;

/// What every guest kernel is told, each with its reason: the kernel compares each parameter with all that it knows,
/// which takes time.
const BASE: &[&str] = &[
    // The only console, and it is silent: `loglevel=1` lets nothing pass but what `panic_print` (bit 5: all messages
    // so far) replays when the kernel panics. A byte on the serial port is an exit to user space.
    "earlyprintk=serial,0x3f8,115200,keep",
    "panic_print=0x20",
    // There is no firmware to reset the machine: a panic ends in a triple fault at once.
    "reboot=t",
    "panic=-1",
    // Neither watched by another clock, of which there is none, nor compared between processors.
    "tsc=reliable",
    // RCU grace periods end at once instead of saving a sleeping laptop's battery.
    "rcupdate.rcu_expedited=1",
];

/// A command line that Linux would not take.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {
    /// It is too long.
    #[error("the kernel command line has {length} bytes and Linux takes {}: shorten `kernel_parameters`", LIMIT - 1)]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// It holds a character that would end it or be misread.
    #[error(
        "`kernel_parameters` holds the character {character:?}: use printable ASCII characters and spaces only"
    )]
    Character {
        /// The first such character.
        character: char,
    },
}

/// The kernel command line, growing from left to right; where the kernel reads a parameter twice the last one wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// The parameters that every guest needs. A verbose kernel writes its log to the console as it boots.
    pub fn new(verbose: bool) -> Self {
        let level = if verbose { 7 } else { 1 };
        // First, so that it holds before `earlyprintk` has the console print what the kernel has said so far.
        Self(format!("loglevel={level} {}", BASE.join(" ")))
    }

    /// Names a virtio-mmio device.
    pub fn add_virtio_mmio(&mut self, address: u64, size: u64, interrupt: u8) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, " virtio_mmio.device={size:#x}@{address:#x}:{interrupt}");
    }

    /// Adds the user's own parameters and checks the whole.
    ///
    /// # Errors
    /// A line that Linux would not take.
    pub fn finish(mut self, parameters: &str) -> Result<Self, CommandLineError> {
        if let Some(character) = parameters.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
            return Err(CommandLineError::Character { character });
        }
        if !parameters.trim().is_empty() {
            self.0.push(' ');
            self.0.push_str(parameters.trim());
        }
        let length = self.0.len();
        if length < LIMIT { Ok(self) } else { Err(CommandLineError::TooLong { length }) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text with its final zero.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone().into_bytes();
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_parameters_come_last() {
        let mut line = CommandLine::new(false);
        line.add_virtio_mmio(0xd000_0000, 0x1000, 5);
        let line = line.finish(" noxsave loglevel=4\t".trim_end()).unwrap();
        assert!(line.as_str().ends_with(" virtio_mmio.device=0x1000@0xd0000000:5 noxsave loglevel=4"));
        assert!(line.as_str().contains("loglevel=1 "));
        assert_eq!(line.to_bytes().last(), Some(&0));
    }

    #[test]
    fn a_line_that_linux_would_cut_is_refused() {
        let error = CommandLine::new(false).finish(&"x".repeat(LIMIT)).unwrap_err();
        assert!(error.to_string().contains("kernel_parameters"), "{error}");
    }

    #[test]
    fn a_character_that_would_end_the_line_is_refused() {
        for text in ["a\0b", "a\nb", "ä"] {
            assert!(matches!(CommandLine::new(true).finish(text), Err(CommandLineError::Character { .. })));
        }
    }
}
