//! Runs a virtual machine in the foreground: `boot KERNEL [--initramfs FILE] [--memory-mib N] [--vcpus N]
//! [--share DIRECTORY] [--vsock SOCKET] [--cmdline-extra PARAMETERS] [--verbose]`.

use std::process::exit;

use saya_vmm::process::{ForegroundOptions, foreground};

fn main() {
    match options(std::env::args().skip(1)) {
        Ok(options) => exit(foreground(&options)),
        Err(message) => {
            eprintln!("boot: {message}");
            exit(2);
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<ForegroundOptions, String> {
    let kernel = arguments.next().ok_or("name a kernel")?;
    let mut options = ForegroundOptions {
        kernel: kernel.into(),
        initramfs: None,
        memory_mib: 256,
        vcpus: 1,
        share: None,
        vsock: None,
        kernel_parameters: String::new(),
        verbose: false,
    };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        let number = |text: String| text.parse::<u32>().map_err(|error| format!("{text:?}: {error}"));
        match name.as_str() {
            "--initramfs" => options.initramfs = Some(value()?.into()),
            "--memory-mib" => options.memory_mib = number(value()?)?.into(),
            "--vcpus" => options.vcpus = number(value()?)?,
            "--share" => options.share = Some(value()?.into()),
            "--vsock" => options.vsock = Some(value()?.into()),
            "--cmdline-extra" => options.kernel_parameters = value()?,
            "--verbose" => options.verbose = true,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}
