//! The guest kernel: an uncompressed x86-64 ELF file with a PVH entry point.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use crate::layout::HIGH_MEMORY;
use crate::memory::GuestMemory;

// ELF constants (System V ABI, chapters 4 and 5; psABI x86-64).
const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// The note that holds the physical address of the 32-bit PVH entry (Xen, public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";

/// More program headers than any kernel has.
const PROGRAM_HEADER_LIMIT: u16 = 128;
/// More bytes of notes than any kernel has.
const NOTE_LIMIT: u64 = 1 << 20;

/// Why a file is not a kernel to boot.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error("cannot read the guest kernel: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("the guest kernel is not an ELF file: `kernel` must name an uncompressed vmlinux, not a bzImage")]
    NotElf,
    /// It is for another machine.
    #[error("the guest kernel is not an ELF file for x86-64 (class {class}, machine {machine})")]
    Machine {
        /// `EI_CLASS`; 2 would be right.
        class: u8,
        /// `e_machine`; 62 would be right.
        machine: u16,
    },
    /// Its headers contradict themselves.
    #[error("the guest kernel is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be entered.
    #[error("the guest kernel has no PVH entry point (ELF note Xen 18): build it with CONFIG_PVH=y")]
    NoPvhNote,
    /// It does not fit.
    #[error(
        "the guest kernel needs memory from {start:#x} to {end:#x}, which the guest does not have: set `memory` higher"
    )]
    DoesNotFit {
        /// The first byte of the segment that does not fit.
        start: u64,
        /// The first byte behind it.
        end: u64,
    },
}

/// A part of the file that goes into memory.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    address: u64,
    file_length: u64,
    memory_length: u64,
}

/// A kernel file whose headers have been read and found good.
#[derive(Debug)]
pub struct KernelImage {
    file: File,
    segments: Vec<Segment>,
    entry: u64,
    start: u64,
    end: u64,
}

// `ByteValued` has no derive and the ELF structs are another crate's, hence wrappers.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct FileHeader(Elf64_Ehdr);
// SAFETY: a C struct of integers without padding: every bit pattern is valid.
unsafe impl ByteValued for FileHeader {}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct ProgramHeader(Elf64_Phdr);
// SAFETY: a C struct of integers without padding: every bit pattern is valid.
unsafe impl ByteValued for ProgramHeader {}

impl KernelImage {
    /// Reads the headers of a kernel file.
    ///
    /// # Errors
    /// Whatever makes it impossible to boot.
    pub fn open(file: File) -> Result<Self, KernelError> {
        let header = read_file_header(&file)?;
        let mut segments = Vec::new();
        let mut entry = None;
        for index in 0..header.e_phnum {
            let program = read_program_header(&file, &header, index)?;
            match program.p_type {
                PT_LOAD => segments.push(segment(&program)?),
                PT_NOTE if entry.is_none() => entry = find_pvh_entry(&file, &program)?,
                _ => {}
            }
        }
        let end = segments.iter().map(|segment| segment.address + segment.memory_length).max();
        let end = end.ok_or(KernelError::Damaged("it has no segment to load"))?;
        let start = segments.iter().map(|segment| segment.address).min().unwrap_or_default();
        Ok(Self { file, segments, entry: entry.ok_or(KernelError::NoPvhNote)?, start, end })
    }

    /// The physical address of the PVH entry.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The kernel's first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The first byte behind the kernel, its zeroed memory included.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Reads the segments into guest memory, which is zero so far: what the file does not hold stays so.
    pub(super) fn load(&self, memory: &GuestMemory) -> Result<(), KernelError> {
        for segment in &self.segments {
            let (start, end) = (segment.address, segment.address + segment.memory_length);
            let length = usize::try_from(segment.memory_length).unwrap_or(usize::MAX);
            let fits = memory.check_range(GuestAddress(start), length);
            if start < HIGH_MEMORY || !fits {
                return Err(KernelError::DoesNotFit { start, end });
            }
            let mut file = &self.file;
            file.seek(SeekFrom::Start(segment.offset))?;
            read_into(memory, file, segment.address, segment.file_length)?;
        }
        Ok(())
    }
}

/// Reads `length` bytes from the file's position straight into guest memory: one copy, made by the kernel. A file may give less at
/// once than is asked for.
pub(super) fn read_into(memory: &GuestMemory, mut file: &File, address: u64, length: u64) -> io::Result<()> {
    let mut rest = usize::try_from(length).map_err(io::Error::other)?;
    let mut to = GuestAddress(address);
    while rest > 0 {
        let read = memory.read_volatile_from(to, &mut file, rest).map_err(io::Error::other)?;
        if read == 0 {
            let message = format!("the file ends {rest} bytes too early");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        rest = rest.saturating_sub(read);
        to = to.unchecked_add(read as u64);
    }
    Ok(())
}

fn read_file_header(file: &File) -> Result<Elf64_Ehdr, KernelError> {
    let mut header = FileHeader::default();
    match file.read_exact_at(header.as_mut_slice(), 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(KernelError::NotElf),
        other => other?,
    }
    let header = header.0;
    let [a, b, c, d, class, order, ..] = header.e_ident;
    if [a, b, c, d] != MAGIC {
        return Err(KernelError::NotElf);
    }
    if class != CLASS_64 || order != LITTLE_ENDIAN || header.e_machine != MACHINE_X86_64 {
        return Err(KernelError::Machine { class, machine: header.e_machine });
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > PROGRAM_HEADER_LIMIT {
        return Err(KernelError::Damaged("its program header table is not of this format"));
    }
    Ok(header)
}

fn read_program_header(file: &File, header: &Elf64_Ehdr, index: u16) -> Result<Elf64_Phdr, KernelError> {
    let mut program = ProgramHeader::default();
    let offset = u64::from(index) * u64::from(header.e_phentsize);
    let offset =
        header.e_phoff.checked_add(offset).ok_or(KernelError::Damaged("its program headers overflow"))?;
    read_or_damaged(file, program.as_mut_slice(), offset, "its program headers lie beyond its end")?;
    Ok(program.0)
}

fn segment(program: &Elf64_Phdr) -> Result<Segment, KernelError> {
    let end = program.p_paddr.checked_add(program.p_memsz);
    if program.p_filesz > program.p_memsz || end.is_none() {
        return Err(KernelError::Damaged("a segment's sizes contradict each other"));
    }
    Ok(Segment {
        offset: program.p_offset,
        address: program.p_paddr,
        file_length: program.p_filesz,
        memory_length: program.p_memsz,
    })
}

/// Looks through a segment of notes for the one with the PVH entry. Its value has 4 bytes or 8.
fn find_pvh_entry(file: &File, program: &Elf64_Phdr) -> Result<Option<u64>, KernelError> {
    if program.p_filesz > NOTE_LIMIT {
        return Err(KernelError::Damaged("its notes are absurdly long"));
    }
    let mut notes = vec![0; usize::try_from(program.p_filesz).unwrap_or_default()];
    read_or_damaged(file, &mut notes, program.p_offset, "its notes lie beyond its end")?;
    let alignment = if program.p_align == 8 { 8 } else { 4 };
    let mut rest = notes.as_slice();
    while let Some((note, after)) = split_note(rest, alignment) {
        if note.kind == XEN_ELFNOTE_PHYS32_ENTRY && note.name == XEN_NOTE_NAME {
            return match note.value.first_chunk() {
                Some(value) => Ok(Some(u64::from(u32::from_le_bytes(*value)))),
                None => Err(KernelError::Damaged("its PVH note is too short")),
            };
        }
        rest = after;
    }
    Ok(None)
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    value: &'a [u8],
}

/// Splits the first note off; `None` at the end and where lengths exceed what there is.
fn split_note(bytes: &[u8], alignment: usize) -> Option<(Note<'_>, &[u8])> {
    // `Elf64_Nhdr`: three words, which need not be aligned in memory.
    let (name_length, rest) = split_word(bytes)?;
    let (value_length, rest) = split_word(rest)?;
    let (kind, rest) = split_word(rest)?;
    let (name, rest) = split_padded(rest, name_length, alignment)?;
    let (value, rest) = split_padded(rest, value_length, alignment)?;
    Some((Note { kind, name, value }, rest))
}

fn split_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

fn split_padded(bytes: &[u8], length: u32, alignment: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length).ok()?;
    let padded = length.checked_next_multiple_of(alignment)?.min(bytes.len().max(length));
    let (field, rest) = bytes.split_at_checked(padded)?;
    Some((field.get(..length)?, rest))
}

fn read_or_damaged(
    file: &File,
    bytes: &mut [u8],
    offset: u64,
    damage: &'static str,
) -> Result<(), KernelError> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::Damaged(damage),
        _ => KernelError::Read(error),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::plain;

    /// A kernel file: code at 1 MiB, followed by zeroed memory, and a PVH note that points at the code.
    pub(crate) fn kernel_bytes(code: &[u8], note_kind: u32) -> Vec<u8> {
        let headers = size_of::<Elf64_Ehdr>() + 2 * size_of::<Elf64_Phdr>();
        let mut note = Vec::new();
        for word in [4, 4, note_kind] {
            note.extend(u32::to_le_bytes(word));
        }
        note.extend(XEN_NOTE_NAME);
        note.extend(0x10_0000u32.to_le_bytes());

        let mut ident = [0; 16];
        ident[..4].copy_from_slice(MAGIC);
        ident[4] = CLASS_64;
        ident[5] = LITTLE_ENDIAN;
        let header = Elf64_Ehdr {
            e_ident: ident,
            e_type: 2,
            e_machine: MACHINE_X86_64,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: 2,
            ..Default::default()
        };
        let load = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: (headers + note.len()) as u64,
            p_paddr: 0x10_0000,
            p_filesz: code.len() as u64,
            p_memsz: code.len() as u64 + 8192,
            ..Default::default()
        };
        let notes = Elf64_Phdr {
            p_type: PT_NOTE,
            p_offset: headers as u64,
            p_filesz: note.len() as u64,
            p_align: 4,
            ..Default::default()
        };
        let mut bytes = FileHeader(header).as_slice().to_vec();
        bytes.extend(ProgramHeader(load).as_slice());
        bytes.extend(ProgramHeader(notes).as_slice());
        bytes.extend(note);
        bytes.extend(code);
        bytes
    }

    pub(crate) fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_kernel_is_loaded_where_its_headers_say() {
        let image = KernelImage::open(file_of(&kernel_bytes(b"\xf4code", XEN_ELFNOTE_PHYS32_ENTRY))).unwrap();
        assert_eq!(image.entry(), 0x10_0000);
        assert_eq!(image.end(), 0x10_0000 + 5 + 8192);

        let memory = plain(32);
        image.load(&memory).unwrap();
        let mut code = [0; 6];
        memory.read_slice(&mut code, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&code, b"\xf4code\0");
    }

    #[test]
    fn a_kernel_without_the_pvh_note_is_refused_with_the_option_that_adds_it() {
        let error = KernelImage::open(file_of(&kernel_bytes(b"\xf4", 17))).unwrap_err();
        assert!(matches!(error, KernelError::NoPvhNote));
        assert!(error.to_string().contains("CONFIG_PVH"), "{error}");
    }

    #[test]
    fn a_note_is_read_wherever_it_lies_in_memory() {
        for shift in 0..4 {
            let mut bytes = vec![0; shift];
            for word in [4, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(b"Xen\0\x01\x02\x03\x04rest");
            let (note, rest) = split_note(&bytes[shift..], 4).unwrap();
            assert_eq!(
                (note.kind, note.name, note.value),
                (XEN_ELFNOTE_PHYS32_ENTRY, XEN_NOTE_NAME, &[1, 2, 3, 4][..])
            );
            assert_eq!(rest, b"rest");
        }
    }

    #[test]
    fn a_file_that_is_not_elf_is_refused_as_such() {
        for bytes in [&b""[..], b"MZ", &[0u8; 4096]] {
            assert!(matches!(KernelImage::open(file_of(bytes)), Err(KernelError::NotElf)));
        }
    }

    #[test]
    fn an_elf_file_for_another_machine_is_refused_as_such() {
        let mut bytes = kernel_bytes(b"\xf4", XEN_ELFNOTE_PHYS32_ENTRY);
        bytes[18] = 183;
        assert!(matches!(KernelImage::open(file_of(&bytes)), Err(KernelError::Machine { machine: 183, .. })));
    }

    #[test]
    fn a_kernel_that_exceeds_memory_is_refused_with_what_it_needs() {
        let mut bytes = kernel_bytes(b"\xf4", XEN_ELFNOTE_PHYS32_ENTRY);
        let memsz = size_of::<Elf64_Ehdr>() + 40;
        bytes[memsz..memsz + 8].copy_from_slice(&(64u64 << 20).to_le_bytes());
        let image = KernelImage::open(file_of(&bytes)).unwrap();
        let error = image.load(&plain(32)).unwrap_err();
        assert!(matches!(error, KernelError::DoesNotFit { start: 0x10_0000, end: 0x410_0000 }), "{error}");
    }

    #[test]
    fn a_truncated_kernel_is_refused() {
        let bytes = kernel_bytes(&[0xf4; 4096], XEN_ELFNOTE_PHYS32_ENTRY);
        let image = KernelImage::open(file_of(&bytes[..bytes.len() - 1])).unwrap();
        assert!(matches!(image.load(&plain(32)), Err(KernelError::Read(_))));
    }

    proptest! {
        #[test]
        fn no_damage_to_the_headers_makes_the_loader_panic(
            changes in prop::collection::vec((0usize..196, any::<u8>()), 1..24),
        ) {
            let mut bytes = kernel_bytes(b"\xf4", XEN_ELFNOTE_PHYS32_ENTRY);
            for (index, value) in changes {
                bytes[index] = value;
            }
            if let Ok(image) = KernelImage::open(file_of(&bytes)) {
                let _ = image.load(&plain(32));
            }
        }
    }
}
