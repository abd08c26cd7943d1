#!/bin/busybox sh
# The first process: kernel modules, then the agent in its place. The kernel's arguments after --
# come as words; AGENTD_ROOT=DEVICE on its command line comes as a variable (init/main.c).
PATH=/bin:/sbin
[ -n "$AGENTD_MODULES" ] || for module in @MODULES@; do
    insmod "/usr/lib/modules/@RELEASE@/$module" 2>/dev/null || echo "init: $module is not loaded"
done
if [ -n "$AGENTD_ROOT" ]; then
    # The disk is only read, so that virtual machines can share it; what is written is in memory.
    mkdir -p /sys /dev /run/disk /run/memory /run/root
    mount -t devtmpfs dev /dev
    mount -t proc proc /proc
    modprobe -a virtio_blk erofs overlay
    until [ -b "$AGENTD_ROOT" ] || [ "$((waited += 1))" -gt 100 ]; do usleep 20000; done
    mount -o ro "$AGENTD_ROOT" /run/disk &&
        mount -t tmpfs tmpfs /run/memory &&
        mkdir /run/memory/upper /run/memory/work &&
        mount -t overlay -o lowerdir=/run/disk,upperdir=/run/memory/upper,workdir=/run/memory/work \
            overlay /run/root &&
        umount /proc && mount -o move /dev /run/root/dev &&
        unset AGENTD_ROOT && AGENTD_MODULES=loaded exec switch_root /run/root /init "$@"
    echo "init: $AGENTD_ROOT is not mounted: going on without"
fi
unset PATH PWD OLDPWD SHLVL module waited AGENTD_ROOT AGENTD_MODULES
exec @PYTHON@ -I -S -E @AGENT@/start.pyc "$@"
