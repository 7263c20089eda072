#ifndef XID_DOVEADM_HOST_H
#define XID_DOVEADM_HOST_H

/* What doveadm and its server export. In every other process these are not
   there: weak, and never called, since nothing registers the commands. */

#include "doveadm.h"
#include "doveadm-mail.h"
#include "doveadm-print.h"

#pragma weak doveadm_cmd_register_ver2
#pragma weak doveadm_mail_cmd_alloc_size
#pragma weak doveadm_mail_failed_error
#pragma weak doveadm_print
#pragma weak doveadm_print_header
#pragma weak doveadm_print_init
#pragma weak hook_doveadm_mail_init

#endif
