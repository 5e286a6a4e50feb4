// SPDX-License-Identifier: GPL-2.0-only
/*
 * init - PID 1 of the lab's virtual machines
 *
 * Mounts the usual file systems and obeys /lab/script, a list of words that "lab run" wrote. Each
 * word ends with a NUL, its first character says what the rest means:
 *
 *   o PATH                what programs print goes to this serial port
 *   r PATH                what they print as errors goes to this port of a virtio-serial device
 *   m PATH [PARAMETERS]   load a module
 *   i PATH                wait until it is there: a driver may take a moment for its devices
 *   k                     wait until the kernel has measured the rate of the TSC as well as it ever will
 *   h NUMBER              reserve huge pages
 *   w PATH=VALUE          write a file (sysctl, debugfs)
 *   b                     bind every edu device to vfio-pci
 *   p ADDRESS             bind this PCI device to vfio-pci
 *   s PATH=BYTES          make a file of this size
 *   e NAME=VALUE          set an environment variable
 *   a ARGUMENT            append to the next program's command line; the first is its path
 *   t ARGUMENT            the same, and @ in it stands for the rate of the TSC in kHz
 *   x                     run that program and wait for it
 *   f PATH                copies of files go to this port of a virtio-serial device
 *   c PATH                copy this file there, below a line "== PATH"
 *   l                     look for memory leaks (kmemleak)
 *
 * What the programs print goes to the serial port of "o", untouched. How they ended goes to the
 * kernel log, which the kernel's command line puts on another one, where no program can disturb it:
 *
 *   lab: start N PATH
 *   lab: exit N STATUS PATH      (STATUS is 128 + the signal if one killed it)
 *   lab: failed TEXT             (a step of the above did not work)
 *   lab: done
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

#define SCRIPT "/lab/script"
#define MAX_ARGS 256
#define PATIENCE_MS 60000
#define EDU_VENDOR "0x1234"
#define EDU_DEVICE "0x11e8"

static int kmsg = -1;
static int output = 1;
static int errors = -1;
static int copies = -1;

static __attribute__((format(printf, 1, 2))) void report(const char *fmt, ...)
{
	char text[512] = "lab: ";
	va_list args;

	va_start(args, fmt);
	vsnprintf(text + 5, sizeof(text) - 6, fmt, args);
	va_end(args);
	strcat(text, "\n");
	if (kmsg < 0 || write(kmsg, text, strlen(text)) < 0)
		fputs(text, stderr);
}

static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	int rc = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, value, strlen(value)) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

static int read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;

	buf[0] = 0;
	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return -errno;
	buf[n] = 0;
	buf[strcspn(buf, "\n")] = 0;
	return 0;
}

static void mount_all(void)
{
	static const struct {
		const char *type, *path, *options;
	} mounts[] = {
		{ "proc", "/proc", NULL },
		{ "sysfs", "/sys", NULL },
		{ "devtmpfs", "/dev", NULL },
		{ "tmpfs", "/tmp", "mode=1777" },
		{ "tmpfs", "/dev/shm", "mode=1777" },
		{ "hugetlbfs", "/dev/hugepages", NULL },
		{ "debugfs", "/sys/kernel/debug", NULL },
		{ "tracefs", "/sys/kernel/tracing", NULL },
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].path, 0755);
		/* the kernel has mounted /dev already if it was told to */
		if (mount(mounts[i].type, mounts[i].path, mounts[i].type, 0, mounts[i].options) &&
		    errno != EBUSY)
			report("failed mount %s: %s", mounts[i].path, strerror(errno));
	}
}

static void load_module(char *path)
{
	char *params = strchr(path, ' ');
	int fd;

	if (params)
		*params++ = 0;
	else
		params = "";
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, params, 0))
		report("failed module %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void set_hugepages(const char *number)
{
	char have[32];

	write_file("/proc/sys/vm/nr_hugepages", number);
	read_file("/proc/sys/vm/nr_hugepages", have, sizeof(have));
	if (atol(have) < atol(number))
		report("failed hugepages: %s of %s (more --mem?)", have, number);
}

static int has_id(const char *device, const char *file, const char *id)
{
	char path[512], value[32];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", device, file);
	return !read_file(path, value, sizeof(value)) && !strcmp(value, id);
}

static int bind_to_vfio(const char *device)
{
	char path[512], link[512] = "";

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", device);
	write_file(path, "vfio-pci");
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind", device);
	write_file(path, device);
	write_file("/sys/bus/pci/drivers_probe", device);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", device);
	if (readlink(path, link, sizeof(link) - 1) < 0 || !strstr(link, "/vfio-pci")) {
		report("failed bind %s to vfio-pci", device);
		return -ENODEV;
	}
	return 0;
}

/* LAB_EDU in the programs' environment: the addresses of the bound devices, in order */
static void bind_edu(void)
{
	struct dirent **list;
	char all[512] = "";
	int n = scandir("/sys/bus/pci/devices", &list, NULL, alphasort);

	for (int i = 0; i < n; free(list[i++])) {
		const char *device = list[i]->d_name;

		if (!has_id(device, "vendor", EDU_VENDOR) || !has_id(device, "device", EDU_DEVICE))
			continue;
		if (bind_to_vfio(device))
			continue;
		if (*all)
			strncat(all, " ", sizeof(all) - strlen(all) - 1);
		strncat(all, device, sizeof(all) - strlen(all) - 1);
	}
	if (n >= 0)
		free(list);
	setenv("LAB_EDU", all, 1);
}

static void run(char **argv)
{
	static int number;
	int status;
	pid_t pid;

	report("start %d %s", ++number, argv[0]);
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_RDONLY);

		dup2(null, 0);
		dup2(output, 1);
		dup2(errors < 0 ? output : errors, 2);
		setsid();
		execv(argv[0], argv);
		dprintf(2, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	/* orphans of earlier programs end here as well */
	while (wait(&status) != pid)
		;
	tcdrain(output);
	report("exit %d %d %s", number,
	       WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), argv[0]);
}

/* kmemleak reports an object only if it is still unreferenced, and unchanged, some seconds later. */
static void find_leaks(void)
{
	static const char file[] = "/sys/kernel/debug/kmemleak";
	char line[512];
	FILE *f;

	if (write_file(file, "scan"))
		return;
	sleep(6);
	write_file(file, "scan");
	f = fopen(file, "r");
	while (f && fgets(line, sizeof(line), f))
		if (write(kmsg, line, strlen(line)) < 0)
			break;
	if (f)
		fclose(f);
}

static void open_output(const char *path)
{
	struct termios tio;
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0) {
		report("failed open %s: %s", path, strerror(errno));
		return;
	}
	output = fd;
	if (!tcgetattr(output, &tio)) {
		cfmakeraw(&tio);
		cfsetspeed(&tio, B115200);
		tcsetattr(output, TCSANOW, &tio);
	}
}

static int open_port(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		report("failed open %s: %s", path, strerror(errno));
	return fd;
}

static void copy_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char buf[16384];
	ssize_t n, done, part;

	if (fd < 0) {
		report("failed copy %s: %s", path, strerror(errno));
		return;
	}
	dprintf(copies, "== %s\n", path);
	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		for (done = 0; done < n; done += part) {
			part = write(copies, buf + done, n - done);
			if (part <= 0) {
				report("failed copy %s: %s", path, strerror(errno));
				close(fd);
				return;
			}
		}
	}
	close(fd);
}

static void wait_for(bool (*ready)(const char *path), const char *path, const char *what)
{
	for (int ms = 0; !ready(path); ms += 10) {
		if (ms >= PATIENCE_MS) {
			report("failed wait for %s", what);
			return;
		}
		usleep(10000);
	}
}

static bool is_there(const char *path)
{
	return !access(path, F_OK);
}

#define CLOCK "/sys/devices/system/clocksource/clocksource0/current_clocksource"

/*
 * KVM takes the rate that the kernel knows when the module is loaded. If the kernel finds a better one after that, KVM
 * has to scale the TSC of each guest, which AMD-V does not do in every machine: then timers of guests are far off.
 */
static bool tsc_is_known(const char *clock)
{
	char name[32];

	return read_file(clock, name, sizeof(name)) || strcmp(name, "tsc-early");
}

#define TSC_SAMPLE_US 200000

/* As the kernel's clock sees it, which follows the TSC. */
static unsigned long tsc_khz(void)
{
#ifdef __x86_64__
	struct timespec start, end;
	unsigned long long tsc;
	long long ns;

	clock_gettime(CLOCK_MONOTONIC_RAW, &start);
	tsc = __rdtsc();
	usleep(TSC_SAMPLE_US);
	clock_gettime(CLOCK_MONOTONIC_RAW, &end);
	tsc = __rdtsc() - tsc;
	ns = (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
	return tsc * 1000000 / ns;
#else
	return 0;
#endif
}

static char *with_tsc_khz(char *text)
{
	char *at = strchr(text, '@'), *out;

	if (!at)
		return text;
	*at = 0;
	if (asprintf(&out, "%s%lu%s", text, tsc_khz(), at + 1) < 0)
		return text;
	report("info %s", out);
	return out;
}

static void make_file(char *path)
{
	char *size = strchr(path, '=');
	int fd;

	if (size)
		*size++ = 0;
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, size ? atoll(size) : 0))
		report("failed file %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void obey(char *word, char **argv, int *argc)
{
	char *value = word + 1;

	switch (word[0]) {
	case 'o':
		open_output(value);
		break;
	case 'r':
		errors = open_port(value);
		break;
	case 'i':
		wait_for(is_there, value, value);
		break;
	case 'k':
		wait_for(tsc_is_known, CLOCK, "the rate of the TSC");
		break;
	case 'm':
		load_module(value);
		break;
	case 'h':
		set_hugepages(value);
		break;
	case 'w': {
		char *path = value, *eq = strchr(value, '=');
		int rc = -EINVAL;

		if (eq) {
			*eq = 0;
			rc = write_file(path, eq + 1);
		}
		if (rc)
			report("failed write %s: %s", path, strerror(-rc));
		break;
	}
	case 'b':
		bind_edu();
		break;
	case 'p':
		bind_to_vfio(value);
		break;
	case 's':
		make_file(value);
		break;
	case 'e':
		putenv(value);
		break;
	case 't':
		value = with_tsc_khz(value);
		/* fallthrough */
	case 'a':
		if (*argc < MAX_ARGS)
			argv[(*argc)++] = value;
		break;
	case 'x':
		argv[*argc] = NULL;
		if (*argc)
			run(argv);
		*argc = 0;
		break;
	case 'f':
		copies = open_port(value);
		break;
	case 'c':
		copy_file(value);
		break;
	case 'l':
		find_leaks();
		break;
	default:
		report("failed script: unknown word '%s'", word);
	}
}

int main(void)
{
	char *argv[MAX_ARGS + 1];
	char *script, *word, *next;
	struct stat st;
	int argc = 0;
	int fd;

	mount_all();
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/tmp", 1);
	chdir("/tmp");

	fd = open(SCRIPT, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || !(script = calloc(1, st.st_size + 1)) ||
	    read(fd, script, st.st_size) != st.st_size) {
		report("failed %s: %s", SCRIPT, strerror(errno));
	} else {
		/* words stay where they are: argv and the environment point into the script */
		for (word = script; word < script + st.st_size; word = next) {
			next = word + strlen(word) + 1;
			obey(word, argv, &argc);
		}
	}
	report("done");
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
