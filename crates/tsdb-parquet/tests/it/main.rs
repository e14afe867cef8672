mod lab;

mod conformance;
mod dedup;
mod expressions;
mod maintenance;
mod model;
mod sql;
