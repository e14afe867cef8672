mod conformance;
mod members;
mod records;
mod secure;
mod support;
