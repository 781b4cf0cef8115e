//! Checks that a file can run as PID 1 in an initramfs that has no dynamic linker. Offsets are those of `Elf64_Ehdr` and
//! `Elf64_Phdr` in elf(5).

/// Why a file cannot be the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAgent {
    /// Not an ELF file, or cut short.
    #[error("it is not a complete ELF file")]
    NotElf,
    /// An ELF file for another machine.
    #[error("it is not a 64-bit x86 program")]
    OtherMachine,
    /// It needs a dynamic linker, and there is none in the initramfs.
    #[error("it is dynamically linked; build it for the target x86_64-unknown-linux-musl")]
    Dynamic,
}

const MAGIC: &[u8] = b"\x7fELF";
/// `e_ident[EI_CLASS]`: 64 bits.
const CLASS_OFFSET: usize = 4;
const CLASS_64: u8 = 2;
/// `e_machine`: `EM_X86_64`.
const MACHINE_OFFSET: usize = 18;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADERS_OFFSET: usize = 32;
const PROGRAM_HEADER_SIZE_OFFSET: usize = 54;
const PROGRAM_HEADER_COUNT_OFFSET: usize = 56;
/// `p_type`: `PT_INTERP`.
const INTERPRETER: u32 = 3;

/// Accepts static x86-64 programs, position-independent ones among them.
pub(super) fn check(file: &[u8]) -> Result<(), NotAnAgent> {
    if !file.starts_with(MAGIC) {
        return Err(NotAnAgent::NotElf);
    }
    let machine = u16::from_le_bytes(at(file, MACHINE_OFFSET)?);
    if file.get(CLASS_OFFSET) != Some(&CLASS_64) || machine != MACHINE_X86_64 {
        return Err(NotAnAgent::OtherMachine);
    }
    let table = u64::from_le_bytes(at(file, PROGRAM_HEADERS_OFFSET)?);
    let table = usize::try_from(table).map_err(|_| NotAnAgent::NotElf)?;
    let size = usize::from(u16::from_le_bytes(at(file, PROGRAM_HEADER_SIZE_OFFSET)?));
    let count = usize::from(u16::from_le_bytes(at(file, PROGRAM_HEADER_COUNT_OFFSET)?));
    for index in 0..count {
        let header = table.checked_add(index * size).ok_or(NotAnAgent::NotElf)?;
        if u32::from_le_bytes(at(file, header)?) == INTERPRETER {
            return Err(NotAnAgent::Dynamic);
        }
    }
    Ok(())
}

fn at<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], NotAnAgent> {
    file.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(NotAnAgent::NotElf)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A minimal program whose program headers have these types.
    pub(in crate::initramfs) fn program(types: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..4].copy_from_slice(MAGIC);
        file[CLASS_OFFSET] = CLASS_64;
        file[MACHINE_OFFSET..][..2].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[PROGRAM_HEADERS_OFFSET..][..8].copy_from_slice(&64_u64.to_le_bytes());
        file[PROGRAM_HEADER_SIZE_OFFSET..][..2].copy_from_slice(&56_u16.to_le_bytes());
        file[PROGRAM_HEADER_COUNT_OFFSET..][..2]
            .copy_from_slice(&u16::try_from(types.len()).unwrap().to_le_bytes());
        for kind in types {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn a_static_program_is_accepted() {
        assert_eq!(check(&program(&[1, 1, 2, 6])), Ok(()));
    }

    #[test]
    fn a_dynamic_program_is_refused_wherever_its_interpreter_stands() {
        assert_eq!(check(&program(&[INTERPRETER, 1])), Err(NotAnAgent::Dynamic));
        assert_eq!(check(&program(&[6, 1, INTERPRETER])), Err(NotAnAgent::Dynamic));
    }

    #[test]
    fn other_files_and_machines_are_refused() {
        assert_eq!(check(b"#!/bin/sh"), Err(NotAnAgent::NotElf));
        assert_eq!(check(b""), Err(NotAnAgent::NotElf));
        let mut arm = program(&[1]);
        arm[MACHINE_OFFSET] = 183;
        assert_eq!(check(&arm), Err(NotAnAgent::OtherMachine));
        let mut narrow = program(&[1]);
        narrow[CLASS_OFFSET] = 1;
        assert_eq!(check(&narrow), Err(NotAnAgent::OtherMachine));
    }

    #[test]
    fn a_table_outside_the_file_is_refused() {
        let mut file = program(&[1]);
        file[PROGRAM_HEADERS_OFFSET..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(check(&file), Err(NotAnAgent::NotElf));
        let whole = program(&[1, 1]);
        assert_eq!(check(&whole[..70]), Err(NotAnAgent::NotElf));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_check_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = MAGIC.to_vec();
            file.extend(tail);
            let _ = check(&file);
        }
    }
}
