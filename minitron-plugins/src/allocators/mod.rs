//! How much of each axis stays.

mod budget;
mod fixed;
mod ratio;
mod shapes;
