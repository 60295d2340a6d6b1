//! On real files of the machine and on damaged ones.
