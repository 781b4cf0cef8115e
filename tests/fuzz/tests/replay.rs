//! The corpus, and what the fuzzer once found, fed to the targets.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::fs;
use std::path::Path;

#[test]
fn every_input_of_the_corpus_is_survived() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in saya_fuzz::TARGETS {
        let mut inputs: Vec<_> =
            fs::read_dir(corpus.join(target.name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for input in inputs {
            println!("{}", input.display());
            (target.run)(&fs::read(&input).unwrap());
        }
    }
}
