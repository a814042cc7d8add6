//! How much of each axis stays.

mod budget;
mod fixed;
mod memory;
mod ratio;
mod shapes;
