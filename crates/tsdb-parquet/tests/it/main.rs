mod lab;

mod conformance;
mod dedup;
mod maintenance;
mod model;
mod sql;
