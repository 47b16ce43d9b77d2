/* NVIDIA's libnvidia-ml.so.1 for a machine that a text file describes; see fake_nvml.py.
 *
 * FAKE_NVML names the file, FAKE_NVML_CALLS one that gets a line for each call. The file is read at
 * the first nvmlInit. When another one takes its name, or FAKE_NVML names another one, the next call
 * of any function reads that: its cards have the handles of those in their places before. Its lines:
 *
 *   driver TEXT | cuda NUMBER | error_string TEXT
 *   gpu                     the lines after it describe a card
 *   instance GPU_ID CI_ID   the lines after it describe a MIG instance of that card
 *   name TEXT | uuid TEXT | capability MAJOR MINOR | memory TOTAL RESERVED USED (bytes)
 *   temperature C | power MILLIWATTS | utilization PERCENT | mig SLOTS
 *   process compute|graphics|mps PID BYTES (-1: not known)
 *   command PID TEXT
 *   fault FUNCTION CODE AFTER GPU   fails from call AFTER + 1 on; FUNCTION may end in *; GPU -1: any
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25,
};

enum { COMPUTE, GRAPHICS, MPS, KINDS };

enum { DEVICES = 32, PROCESSES = 64, FAULTS = 64, CALLS = 4096, TEXT = 512 };

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} ProcessInfo;

typedef struct {
    unsigned version, sensor;
    int temperature;
} Temperature;

typedef struct {
    int gpu, memory;
} Utilization;

typedef struct Device {
    struct Device *card; /* of a MIG instance */
    int index, mig_slots, gpu_instance, compute_instance;
    int major, minor, temperature, power, utilization;
    char name[TEXT], uuid[TEXT];
    unsigned long long total, reserved, used;
    ProcessInfo processes[KINDS][PROCESSES];
    unsigned process_count[KINDS];
} Device;

static struct {
    struct stat file;
    char driver[TEXT], error_string[TEXT];
    int cuda;
    Device devices[DEVICES];
    int device_count, card_count;
    struct { unsigned pid; char text[TEXT]; } commands[PROCESSES];
    int command_count;
    struct { char function[TEXT]; int code, after, card; } faults[FAULTS];
    int fault_count;
    struct { const char *function; int card, count; } calls[CALLS];
    int call_count;
} machine;

static int users;

/* For mistakes in a description, which are no faults of its machine. */
static void die(const char *what) {
    fprintf(stderr, "fake_nvml: %s\n", what);
    abort();
}

static Device *add_device(Device *card) {
    if (machine.device_count == DEVICES) die("too many");
    Device *device = &machine.devices[machine.device_count++];
    *device = (Device){.card = card, .major = -1, .temperature = -1, .power = -1};
    device->utilization = -1;
    device->index = card ? card->index : machine.card_count++;
    return device;
}

static void add_process(Device *device, const char *kind, unsigned pid, long long used) {
    int which = !strcmp(kind, "compute") ? COMPUTE : !strcmp(kind, "graphics") ? GRAPHICS : MPS;
    unsigned *count = &device->process_count[which];
    if (*count == PROCESSES) die("too many");
    unsigned gi = device->card ? (unsigned)device->gpu_instance : ~0u;
    unsigned ci = device->card ? (unsigned)device->compute_instance : ~0u;
    device->processes[which][(*count)++] = (ProcessInfo){pid, (unsigned long long)used, gi, ci};
}

/* Whether `line` starts with `key`; `rest` is then what follows. */
static int is(const char *line, const char *key, const char **rest) {
    size_t length = strlen(key);
    if (strncmp(line, key, length) || (line[length] != ' ' && line[length])) return 0;
    *rest = line[length] ? line + length + 1 : line + length;
    return 1;
}

static void copy(char *to, const char *from) { snprintf(to, TEXT, "%s", from); }

static void read_line(const char *line, Device **device) {
    const char *rest;
    char word[TEXT];
    int a, b, offset;
    long long size;
    if (is(line, "driver", &rest)) copy(machine.driver, rest);
    else if (is(line, "cuda", &rest)) machine.cuda = atoi(rest);
    else if (is(line, "error_string", &rest)) copy(machine.error_string, rest);
    else if (is(line, "gpu", &rest)) *device = add_device(NULL);
    else if (is(line, "command", &rest) && sscanf(rest, "%d %n", &a, &offset) == 1) {
        if (machine.command_count == PROCESSES) die("too many");
        machine.commands[machine.command_count].pid = (unsigned)a;
        copy(machine.commands[machine.command_count++].text, rest + offset);
    } else if (is(line, "fault", &rest)) {
        if (machine.fault_count == FAULTS) die("too many");
        int i = machine.fault_count++;
        if (sscanf(rest, "%511s %d %d %d", machine.faults[i].function, &machine.faults[i].code,
                   &machine.faults[i].after, &machine.faults[i].card) != 4) die(line);
    } else if (!*device) die(line);
    else if (is(line, "instance", &rest) && sscanf(rest, "%d %d", &a, &b) == 2) {
        *device = add_device((*device)->card ? (*device)->card : *device);
        (*device)->gpu_instance = a;
        (*device)->compute_instance = b;
    } else if (is(line, "name", &rest)) copy((*device)->name, rest);
    else if (is(line, "uuid", &rest)) copy((*device)->uuid, rest);
    else if (is(line, "mig", &rest)) (*device)->mig_slots = atoi(rest);
    else if (is(line, "temperature", &rest)) (*device)->temperature = atoi(rest);
    else if (is(line, "power", &rest)) (*device)->power = atoi(rest);
    else if (is(line, "utilization", &rest)) (*device)->utilization = atoi(rest);
    else if (is(line, "capability", &rest))
        sscanf(rest, "%d %d", &(*device)->major, &(*device)->minor);
    else if (is(line, "memory", &rest))
        sscanf(rest, "%llu %llu %llu", &(*device)->total, &(*device)->reserved, &(*device)->used);
    else if (is(line, "process", &rest) && sscanf(rest, "%511s %d %lld", word, &a, &size) == 3)
        add_process(*device, word, (unsigned)a, size);
    else die(line);
}

static void read_machine(void) {
    const char *path = getenv("FAKE_NVML");
    struct stat found;
    if (!path || stat(path, &found)) die("FAKE_NVML names no file");
    if (found.st_ino == machine.file.st_ino && found.st_dev == machine.file.st_dev) return;
    FILE *file = fopen(path, "r");
    if (!file) die("FAKE_NVML names a file that cannot be read");
    memset(&machine, 0, sizeof machine);
    machine.file = found;
    char line[2 * TEXT];
    Device *device = NULL;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (*line) read_line(line, &device);
    }
    fclose(file);
}

static int count_call(const char *function, int card) {
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s %d\n", function, card);
        fclose(file);
    }
    for (int i = 0; i < machine.call_count; i++)
        if (machine.calls[i].function == function && machine.calls[i].card == card)
            return ++machine.calls[i].count;
    if (machine.call_count == CALLS) die("too many");
    machine.calls[machine.call_count].function = function;
    machine.calls[machine.call_count].card = card;
    return machine.calls[machine.call_count++].count = 1;
}

/* What this call fails with. */
static int fault(const char *function, int card) {
    int call = count_call(function, card);
    for (int i = 0; i < machine.fault_count; i++) {
        const char *pattern = machine.faults[i].function;
        size_t length = strlen(pattern);
        int fits = length && pattern[length - 1] == '*' ? !strncmp(function, pattern, length - 1)
                                                        : !strcmp(function, pattern);
        int here = machine.faults[i].card < 0 || machine.faults[i].card == card;
        if (fits && here && call > machine.faults[i].after) return machine.faults[i].code;
    }
    return SUCCESS;
}

/* What any call about the whole machine begins with. */
#define BEGIN(argument)                                  \
    do {                                                 \
        if (!users) return UNINITIALIZED;                \
        read_machine();                                  \
        int code = fault(__func__, -1);                  \
        if (code) return code;                           \
        if (!(argument)) return INVALID_ARGUMENT;        \
    } while (0)

/* What any call about a card or an instance begins with. */
#define BEGIN_DEVICE(device, argument)                   \
    do {                                                 \
        if (!users) return UNINITIALIZED;                \
        read_machine();                                  \
        if (!is_device(device)) return INVALID_ARGUMENT; \
        int code = fault(__func__, (device)->index);     \
        if (code) return code;                           \
        if (!(argument)) return INVALID_ARGUMENT;        \
    } while (0)

static int is_device(const Device *device) {
    for (int i = 0; i < machine.device_count; i++)
        if (device == &machine.devices[i]) return 1;
    return 0;
}

static int give_text(const char *text, char *buffer, unsigned length) {
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return *text ? SUCCESS : NOT_SUPPORTED;
}

static int give_number(int number, int *to) {
    if (number < 0) return NOT_SUPPORTED;
    *to = number;
    return SUCCESS;
}

static int give_processes(const Device *device, int kind, unsigned *count, ProcessInfo *to) {
    unsigned room = *count;
    *count = device->process_count[kind];
    if (*count > room) return INSUFFICIENT_SIZE;
    if (*count && !to) return INVALID_ARGUMENT;
    if (*count) memcpy(to, device->processes[kind], *count * sizeof *to);
    return SUCCESS;
}

static int start(const char *function) {
    read_machine();
    int code = fault(function, -1);
    if (!code) users++;
    return code;
}

int nvmlInitWithFlags(unsigned flags) { return flags ? INVALID_ARGUMENT : start(__func__); }

int nvmlInit_v2(void) { return start(__func__); }

int nvmlShutdown(void) {
    BEGIN(1);
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char text[64];
    if (*machine.error_string) return machine.error_string;
    snprintf(text, sizeof text, "Fake error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    BEGIN(version);
    return give_text(machine.driver, version, length);
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    BEGIN(version);
    return give_number(machine.cuda, version);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    BEGIN(version);
    return give_number(machine.cuda, version);
}

int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    BEGIN(name && length);
    for (int i = 0; i < machine.command_count; i++)
        if (machine.commands[i].pid == pid) {
            snprintf(name, length, "%s", machine.commands[i].text);
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN(count);
    *count = (unsigned)machine.card_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (!users) return UNINITIALIZED;
    read_machine();
    int code = fault(__func__, (int)index);
    if (code) return code;
    for (int i = 0; device && i < machine.device_count; i++)
        if (!machine.devices[i].card && machine.devices[i].index == (int)index) {
            *device = &machine.devices[i];
            return SUCCESS;
        }
    return INVALID_ARGUMENT;
}

/* It is about no card in particular: the real one fails when any card is lost. */
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    BEGIN(uuid && device);
    for (int i = 0; i < machine.device_count; i++)
        if (!strcmp(machine.devices[i].uuid, uuid)) {
            *device = &machine.devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    BEGIN_DEVICE(device, name);
    return give_text(device->name, name, length);
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length) {
    BEGIN_DEVICE(device, uuid);
    return give_text(device->uuid, uuid, length);
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    BEGIN_DEVICE(device, major && minor);
    *minor = device->minor;
    return give_number(device->major, major);
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    BEGIN_DEVICE(device, memory);
    unsigned long long taken = device->reserved + device->used;
    *memory = (Memory){device->total, device->total - taken, taken};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    BEGIN_DEVICE(device, memory);
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    unsigned long long free = device->total - device->reserved - device->used;
    *memory = (MemoryV2){memory->version, device->total, device->reserved, free, device->used};
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, unsigned sensor, int *temperature) {
    BEGIN_DEVICE(device, temperature && sensor == 0);
    return give_number(device->temperature, temperature);
}

int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature) {
    BEGIN_DEVICE(device, temperature && temperature->sensor == 0);
    if (temperature->version != (sizeof *temperature | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    return give_number(device->temperature, &temperature->temperature);
}

int nvmlDeviceGetPowerUsage(Device *device, int *milliwatts) {
    BEGIN_DEVICE(device, milliwatts);
    return give_number(device->power, milliwatts);
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    BEGIN_DEVICE(device, rates);
    /* Neither a card in MIG mode nor its instances tell it. */
    if (device->card || device->mig_slots) return NOT_SUPPORTED;
    return give_number(device->utilization, &rates->gpu);
}

#define RUNNING_PROCESSES(function, kind)                                      \
    int function(Device *device, unsigned *count, ProcessInfo *processes) {    \
        BEGIN_DEVICE(device, count);                                           \
        return give_processes(device, kind, count, processes);                 \
    }

RUNNING_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE)
RUNNING_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
RUNNING_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS)
RUNNING_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
RUNNING_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS)
RUNNING_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS)

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    BEGIN_DEVICE(device, current && pending);
    /* A card of before Ampere knows no such mode. */
    if (device->card || device->major < 8) return NOT_SUPPORTED;
    *current = *pending = device->mig_slots > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    BEGIN_DEVICE(device, count);
    *count = (unsigned)device->mig_slots;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned slot, Device **instance) {
    BEGIN_DEVICE(device, instance);
    if (slot >= (unsigned)device->mig_slots) return INVALID_ARGUMENT;
    for (int i = 0; i < machine.device_count; i++)
        if (machine.devices[i].card == device && !slot--) {
            *instance = &machine.devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(Device *device, int *id) {
    BEGIN_DEVICE(device, id);
    return device->card ? give_number(device->gpu_instance, id) : NOT_SUPPORTED;
}

int nvmlDeviceGetComputeInstanceId(Device *device, int *id) {
    BEGIN_DEVICE(device, id);
    return device->card ? give_number(device->compute_instance, id) : NOT_SUPPORTED;
}
