//! The corpus, what the fuzzer once found, and simple variations of both, fed to the targets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test program")]

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use saya_fuzz::{TARGETS, Target};

/// How many variations of its corpus each target gets, the same in each run: a few seconds' worth.
const VARIATIONS: usize = 100;

/// A target may set limits of the whole process while it runs: two at once would meet each other's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(target: Target, input: &[u8]) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    (target.run)(input);
}

fn corpus(target: Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut inputs: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} has no corpus", target.name);
    inputs.iter().map(|input| fs::read(input).unwrap()).collect()
}

#[test]
fn the_targets_are_those_that_have_a_corpus() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert!(TARGETS.iter().map(|target| target.name).eq(names), "`cargo xtask fuzz` takes these for targets");
}

#[test]
fn every_input_of_the_corpus_is_survived() {
    for &target in TARGETS {
        for (number, input) in corpus(target).into_iter().enumerate() {
            println!("{} {number}", target.name);
            run(target, &input);
        }
    }
}

/// Marsaglia's xorshift64: the same numbers in each run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 33) as usize
}

/// Bytes changed, repeated, cut off, and taken from another input.
fn vary(inputs: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    let mut input = inputs[next(state) % inputs.len()].clone();
    for _ in 0..=next(state) % 8 {
        let at = next(state) % (input.len() + 1);
        match next(state) % 5 {
            0 => input.insert(at, next(state) as u8),
            1 => input.truncate(at),
            2 => input.extend_from_within(at..),
            3 => input.extend(&inputs[next(state) % inputs.len()]),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = [0, 1, 0x7F, 0xFF, next(state) as u8][next(state) % 5];
                }
            }
        }
        input.truncate(4096);
    }
    input
}

#[test]
fn variations_of_the_corpus_are_survived() {
    for &target in TARGETS {
        let (inputs, mut state) = (corpus(target), 0x9E37_79B9_7F4A_7C15);
        for number in 0..VARIATIONS {
            let input = vary(&inputs, &mut state);
            println!("{} {number}: {input:?}", target.name);
            run(target, &input);
        }
    }
}
