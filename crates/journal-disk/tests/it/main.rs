mod conformance; // the contract
mod faults; // a disk that fails or is full
mod recovery; // crashes and damage
mod retention;
mod support;
