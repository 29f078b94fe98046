// The planted bugs: every kernel of this folder takes one as a template parameter; kNone is the correct kernel.
#pragma once

enum Bug {
    kNone,
};
