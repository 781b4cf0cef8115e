//! Where things lie in the guest's physical address space.
//!
//! ```text
//! 0x0000_0000  page 0, unused                       0xC000_0000  end of low memory, start of the device gap
//! 0x0000_6000  hvm_start_info, modules, memory map  0xD000_0000  virtio-mmio devices
//! 0x0002_0000  kernel command line                  0xFEC0_0000  I/O APIC
//! 0x0009_FC00  MP table                             0xFEE0_0000  local APICs (KVM)
//! 0x0010_0000  kernel, then the rest of low memory  0xFFFB_C000  KVM's own pages (Intel)
//!              …initramfs at its top                0x1_0000_0000  high memory
//! ```

/// The start of the gap below 4 GiB in which there is no memory but devices.
pub const GAP_START: u64 = 0xC000_0000;
/// The end of the gap: memory beyond [`GAP_START`] bytes continues here.
pub const GAP_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio device; one follows the other, several to a page.
pub const VIRTIO_MMIO_BASE: u64 = 0xD000_0000;
/// The interrupt of the first virtio-mmio device, the next one has the next. Linux does not take 0 for an interrupt.
pub const FIRST_INTERRUPT: u8 = 1;
/// The last interrupt that there can be: the I/O APIC has 24 inputs at most, as the 82093AA.
pub const LAST_INTERRUPT: u8 = 23;

/// The I/O APIC's registers, where PCs have them.
pub const IO_APIC: u32 = 0xFEC0_0000;
/// The local APIC's registers, where KVM has them (`APIC_DEFAULT_PHYS_BASE`).
pub const LOCAL_APIC: u32 = 0xFEE0_0000;

/// One page that KVM needs on Intel hosts for guests without paging (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages that KVM needs on Intel hosts for guests in real mode (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xFFFB_D000;

/// The PVH boot protocol's `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
/// The list of modules to which `hvm_start_info` points.
pub const MODULES: u64 = 0x6100;
/// The memory map to which `hvm_start_info` points.
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;

/// The MP table: the last KiB of the 640 KiB of base memory is where kernels look (MultiProcessor Specification 1.4,
/// section 4). A table of many processors goes on beyond, into what the memory map reserves.
pub const MP_TABLE: u64 = 0x9_FC00;
/// Memory from [`MP_TABLE`] to here is reserved, as on every PC.
pub const HIGH_MEMORY: u64 = 0x10_0000;
