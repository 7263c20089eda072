#ifndef XID_COMPAT_H
#define XID_COMPAT_H

/* What differs between the host's versions. */

#include "lib.h"

#endif
