mod conformance;
mod records;
mod secure;
mod support;
