#![no_main]

minitron_fuzz::target!(conversation);
