//! Offsets and values of the registers (virtio 1.2, table 4.1).

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00C;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
pub(super) const QUEUE_NUM: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
/// The register to which a driver writes the number of a queue that it has added to.
pub const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0A0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0A4;
pub(super) const SHM_LEN_LOW: u64 = 0x0B0;
pub(super) const SHM_LEN_HIGH: u64 = 0x0B4;
pub(super) const SHM_BASE_LOW: u64 = 0x0B8;
pub(super) const SHM_BASE_HIGH: u64 = 0x0BC;
pub(super) const CONFIG_GENERATION: u64 = 0x0FC;
/// The device's configuration space begins here.
pub(super) const CONFIG: u64 = 0x100;

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version of devices that are not legacy ones.
pub(super) const CURRENT_VERSION: u32 = 2;
/// "saya", little-endian. The guest kernel's driver knows by it that the device sets the bit for used buffers in `InterruptStatus`
/// before each interrupt, and does not acknowledge that bit alone (guest-kernel/patches/virtio-mmio-no-acknowledgement.patch).
pub(super) const VENDOR: u32 = 0x6179_6173;
