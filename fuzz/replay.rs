//! Tries what the fuzzer has found so far, with every run of the tests.

use std::{fs, path::Path};

/// The inputs of a target, `corpus/NAME`.
pub(crate) fn replay(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|e| panic!("{}: {e}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for input in inputs {
        eprintln!("{}", input.display()); // Shown with a failure: which one it was.
        run(&fs::read(input).unwrap());
    }
}
