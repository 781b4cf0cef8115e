//! Guests as sequences of instructions for a processor in 32-bit protected mode without paging, as PVH starts it.

/// Where descriptor tables for [`Code::survive_faults`] lie.
const TABLES: u32 = 0x8000;
/// The code segment's selector in those tables.
const CODE_SELECTOR: u16 = 8;
/// Vectors of exceptions that the handler skips instructions for: #UD and #GP.
const INVALID_OPCODE: u32 = 6;
const GENERAL_PROTECTION: u32 = 13;
/// Where PVH kernels of these tests are loaded and entered.
const ENTRY: u32 = 0x10_0000;

/// Instructions.
#[derive(Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    /// What to execute, with the machine's end behind it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend(crate::common::power(0));
        self.0
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// mov dword [address], value
    pub(crate) fn store(&mut self, address: u32, value: u32) {
        self.bytes(&[0xC7, 0x05]);
        self.bytes(&address.to_le_bytes());
        self.bytes(&value.to_le_bytes());
    }

    /// mov word [address], value
    pub(crate) fn store_word(&mut self, address: u32, value: u16) {
        self.bytes(&[0x66, 0xC7, 0x05]);
        self.bytes(&address.to_le_bytes());
        self.bytes(&value.to_le_bytes());
    }

    /// mov byte [address], value
    pub(crate) fn store_byte(&mut self, address: u32, value: u8) {
        self.bytes(&[0xC6, 0x05]);
        self.bytes(&address.to_le_bytes());
        self.bytes(&[value]);
    }

    /// Bytes to an address.
    pub(crate) fn store_bytes(&mut self, address: u32, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(4);
        let mut at = address;
        for word in &mut words {
            self.store(at, u32::from_le_bytes(word.try_into().unwrap()));
            at += 4;
        }
        for byte in words.remainder() {
            self.store_byte(at, *byte);
            at += 1;
        }
    }

    /// mov eax, [address]
    pub(crate) fn load(&mut self, address: u32) {
        self.bytes(&[0xA1]);
        self.bytes(&address.to_le_bytes());
    }

    /// add dword [address], 1
    pub(crate) fn increment(&mut self, address: u32) {
        self.bytes(&[0x83, 0x05]);
        self.bytes(&address.to_le_bytes());
        self.bytes(&[1]);
    }

    /// Does `body` so many times; it must not touch ecx.
    pub(crate) fn repeat(&mut self, times: u32, body: impl FnOnce(&mut Self)) {
        self.bytes(&[0xB9]); // mov ecx, times
        self.bytes(&times.to_le_bytes());
        let begin = self.0.len();
        body(self);
        self.bytes(&[0x49, 0x0F, 0x85]); // dec ecx; jnz begin
        let end = self.0.len() + 4;
        let back = i32::try_from(begin).unwrap() - i32::try_from(end).unwrap();
        self.bytes(&back.to_le_bytes());
    }

    /// From now on instructions of two bytes that the processor refuses are skipped. edi is lost.
    pub(crate) fn survive_faults(&mut self) {
        // A flat code and a flat data segment, and the table's pointer.
        self.store_bytes(TABLES, &[0; 8]);
        self.store_bytes(TABLES + 8, &0x00CF_9A00_0000_FFFFu64.to_le_bytes());
        self.store_bytes(TABLES + 16, &0x00CF_9200_0000_FFFFu64.to_le_bytes());
        self.store_word(TABLES + 0x40, 23);
        self.store(TABLES + 0x42, TABLES);
        self.bytes(&[0x0F, 0x01, 0x15]); // lgdt [TABLES + 0x40]
        self.bytes(&(TABLES + 0x40).to_le_bytes());
        // jmp 8:next
        let next = ENTRY + u32::try_from(self.0.len()).unwrap() + 7;
        self.bytes(&[0xEA]);
        self.bytes(&next.to_le_bytes());
        self.bytes(&CODE_SELECTOR.to_le_bytes());
        // mov eax, 16; mov ds, ax; mov es, ax; mov ss, ax; mov esp, TABLES
        self.bytes(&[0xB8, 16, 0, 0, 0, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0, 0xBC]);
        self.bytes(&TABLES.to_le_bytes());

        // pop edi; add edi, 2; add esp, 8; jmp edi: iret is more than some a KVM can do. #UD has no error code, #GP has
        // one: add esp, 4.
        let (without, with) = (TABLES + 0x100, TABLES + 0x110);
        let skip = [0x5F, 0x83, 0xC7, 2, 0x83, 0xC4, 8, 0xFF, 0xE7];
        self.store_bytes(without, &skip);
        self.store_bytes(with, &[&[0x83, 0xC4, 4][..], &skip].concat());
        let table = TABLES + 0x200;
        for (vector, handler) in [(INVALID_OPCODE, without), (GENERAL_PROTECTION, with)] {
            self.store(table + 8 * vector, u32::from(CODE_SELECTOR) << 16 | handler & 0xFFFF);
            self.store(table + 8 * vector + 4, handler & 0xFFFF_0000 | 0x8E00);
        }
        self.store_word(TABLES + 0x48, 32 * 8 - 1);
        self.store(TABLES + 0x4A, table);
        self.bytes(&[0x0F, 0x01, 0x1D]); // lidt [TABLES + 0x48]
        self.bytes(&(TABLES + 0x48).to_le_bytes());
    }
}
