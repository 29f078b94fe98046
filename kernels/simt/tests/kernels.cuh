// The kernels of the emulator's own tests. They are compiled into the emulated library only.
#pragma once

#include "clean.cuh"
#include "mutants.cuh"
