//! How much of each axis stays.

mod budget;
mod fixed;
mod knapsack;
mod layers;
mod memory;
mod ratio;
mod shapes;
