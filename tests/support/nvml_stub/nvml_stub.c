/* A libnvidia-ml.so.1 for tests, after NVML's documented ABI, scripted by the file named in $NVML_STUB.
 *
 * The file is read anew at every call, so that a test changes the node by rewriting it. One statement a line:
 *
 *   init CODE                       what nvmlInitWithFlags returns (default 0)
 *   driver VERSION
 *   cuda NUMBER                     12040 for 12.4; without it, it is not supported
 *   gpu INDEX key=value ...         name uuid serial memory used util temp power bus mig ecc remap pending retire recovery events numa
 *                                   ('_' in a name reads as a space); a key that is left out is not supported
 *   slice GPU INDEX UUID key=value ...   a MIG device: name memory gi ci (its instances) g c mb (its attributes)
 *   link GPU LINK PEER|switch       an active NVLink
 *   topology GPU GPU LEVEL          as nvmlGpuTopologyLevel_t
 *   fault GPU FUNCTION CODE         FUNCTION may be *, CODE may be hang
 *   event GPU TYPE DATA             the n-th such line is the n-th event to arrive; GPU -1 is an unknown device
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GPUS 16
#define SLICES 7
#define LINKS 36
#define FAULTS 32
#define EVENTS 64

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, VERSION_MISMATCH = 25, HANG = -1, RECOVERY_ACTION = 230
};

struct slice {
    int used;
    char uuid[96], name[96];
    long long memory, gi, ci, g, c, mb;
};
struct gpu {
    int index, there;
    char name[96], uuid[96], serial[32], bus[32];
    long long memory, used, util, temp, power, mig, ecc, remap, pending, retire, recovery, events, numa;
    struct slice slices[SLICES];
    int link[LINKS]; /* -1 none, -2 switch, else the peer */
    int topology[GPUS];
};
struct fault { int gpu; char function[64]; int code; };
struct event { int gpu; unsigned long long type, data; };
struct script {
    int init, cuda;
    char driver[80];
    struct gpu gpus[GPUS];
    struct fault faults[FAULTS];
    struct event events[EVENTS];
    int gpu_count, fault_count, event_count;
};

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct {
    char bus_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;
typedef struct { void *device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } event_data;

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency_us;
    int type, code;
    unsigned long long value;
} field_value;

typedef struct {
    unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    unsigned int gpu_instance_slices, compute_instance_slices;
    unsigned long long memory_mb;
} attributes;

/* Handles are the addresses of these; what they stand for is read from the script at each call. */
static struct { int index; } handles[GPUS];
static struct { int index; } slice_handles[GPUS][SLICES];
static struct { unsigned long long registered[GPUS]; } event_set;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct script script;
static int initialized, delivered;

static long long number(const char *text) { return strtoll(text, NULL, 0); }

static void read_gpu(char *rest) {
    char *at, *word = strtok_r(rest, " \n", &at);
    if (!word || number(word) >= GPUS) return;
    struct gpu *gpu = &script.gpus[number(word)];
    gpu->there = 1;
    gpu->index = (int)number(word);
    if (gpu->index + 1 > script.gpu_count) script.gpu_count = gpu->index + 1;
    while ((word = strtok_r(NULL, " \n", &at))) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(word, "name")) {
            snprintf(gpu->name, sizeof gpu->name, "%s", value);
            for (char *c = gpu->name; *c; c++) if (*c == '_') *c = ' ';
        } else if (!strcmp(word, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", value);
        else if (!strcmp(word, "serial")) snprintf(gpu->serial, sizeof gpu->serial, "%s", value);
        else if (!strcmp(word, "bus")) snprintf(gpu->bus, sizeof gpu->bus, "%s", value);
        else if (!strcmp(word, "memory")) gpu->memory = number(value);
        else if (!strcmp(word, "used")) gpu->used = number(value);
        else if (!strcmp(word, "util")) gpu->util = number(value);
        else if (!strcmp(word, "temp")) gpu->temp = number(value);
        else if (!strcmp(word, "power")) gpu->power = number(value);
        else if (!strcmp(word, "mig")) gpu->mig = number(value);
        else if (!strcmp(word, "ecc")) gpu->ecc = number(value);
        else if (!strcmp(word, "remap")) gpu->remap = number(value);
        else if (!strcmp(word, "pending")) gpu->pending = number(value);
        else if (!strcmp(word, "retire")) gpu->retire = number(value);
        else if (!strcmp(word, "recovery")) gpu->recovery = number(value);
        else if (!strcmp(word, "events")) gpu->events = number(value);
        else if (!strcmp(word, "numa")) gpu->numa = number(value);
    }
}

static void read_slice(char *rest) {
    char *at, *word = strtok_r(rest, " \n", &at), *index = strtok_r(NULL, " \n", &at), *uuid = strtok_r(NULL, " \n", &at);
    if (!uuid || number(word) >= GPUS || number(index) >= SLICES) return;
    struct slice *slice = &script.gpus[number(word)].slices[number(index)];
    slice->used = 1;
    slice->memory = slice->gi = slice->ci = slice->g = slice->c = slice->mb = -1;
    snprintf(slice->uuid, sizeof slice->uuid, "%s", uuid);
    while ((word = strtok_r(NULL, " \n", &at))) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(word, "name")) {
            snprintf(slice->name, sizeof slice->name, "%s", value);
            for (char *c = slice->name; *c; c++) if (*c == '_') *c = ' ';
        } else if (!strcmp(word, "memory")) slice->memory = number(value);
        else if (!strcmp(word, "gi")) slice->gi = number(value);
        else if (!strcmp(word, "ci")) slice->ci = number(value);
        else if (!strcmp(word, "g")) slice->g = number(value);
        else if (!strcmp(word, "c")) slice->c = number(value);
        else if (!strcmp(word, "mb")) slice->mb = number(value);
    }
}

static void read_line(char *line) {
    char a[96], b[96], c[96];
    if (sscanf(line, "init %95s", a) == 1) script.init = (int)number(a);
    else if (sscanf(line, "driver %79s", a) == 1) snprintf(script.driver, sizeof script.driver, "%.79s", a);
    else if (sscanf(line, "cuda %95s", a) == 1) script.cuda = (int)number(a);
    else if (!strncmp(line, "gpu ", 4)) read_gpu(line + 4);
    else if (!strncmp(line, "slice ", 6)) read_slice(line + 6);
    else if (sscanf(line, "link %95s %95s %95s", a, b, c) == 3)
        script.gpus[number(a)].link[number(b)] = !strcmp(c, "switch") ? -2 : (int)number(c);
    else if (sscanf(line, "topology %95s %95s %95s", a, b, c) == 3) {
        script.gpus[number(a)].topology[number(b)] = (int)number(c);
        script.gpus[number(b)].topology[number(a)] = (int)number(c);
    } else if (sscanf(line, "fault %95s %95s %95s", a, b, c) == 3 && script.fault_count < FAULTS) {
        struct fault *fault = &script.faults[script.fault_count++];
        fault->gpu = (int)number(a);
        snprintf(fault->function, sizeof fault->function, "%.63s", b);
        fault->code = !strcmp(c, "hang") ? HANG : (int)number(c);
    } else if (sscanf(line, "event %95s %95s %95s", a, b, c) == 3 && script.event_count < EVENTS) {
        struct event *event = &script.events[script.event_count++];
        event->gpu = (int)number(a);
        event->type = (unsigned long long)number(b);
        event->data = (unsigned long long)number(c);
    }
}

static void read_script(void) {
    memset(&script, 0, sizeof script);
    for (int g = 0; g < GPUS; g++) {
        struct gpu *gpu = &script.gpus[g];
        gpu->memory = gpu->used = gpu->util = gpu->temp = gpu->power = gpu->mig = gpu->ecc = gpu->remap = gpu->events = -1;
        gpu->pending = gpu->retire = gpu->recovery = gpu->numa = -1;
        for (int l = 0; l < LINKS; l++) gpu->link[l] = -1;
        for (int p = 0; p < GPUS; p++) gpu->topology[p] = -1;
    }
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    while (file && fgets(line, sizeof line, file)) read_line(line);
    if (file) fclose(file);
}

static int fault_of(int gpu, const char *function) {
    for (int i = 0; i < script.fault_count; i++) {
        struct fault *fault = &script.faults[i];
        if (fault->gpu == gpu && (!strcmp(fault->function, "*") || !strcmp(fault->function, function))) return fault->code;
    }
    return OK;
}

static int enter(int gpu, const char *function) {
    pthread_mutex_lock(&mutex);
    read_script();
    if (!initialized) return UNINITIALIZED;
    int code = fault_of(gpu, function);
    if (code == HANG) {
        pthread_mutex_unlock(&mutex);
        struct timespec minute = {60, 0};
        nanosleep(&minute, NULL);
        pthread_mutex_lock(&mutex);
        return TIMEOUT;
    }
    return code;
}

static int leave(int code) {
    pthread_mutex_unlock(&mutex);
    return code;
}

static int index_of(void *device) {
    for (int g = 0; g < GPUS; g++) if (device == &handles[g]) return g;
    return -1;
}

/* The GPU of a handle; *slice is where its MIG device stands in its list, or -1. */
static int gpu_of(void *device, int *slice) {
    for (int s = 0; s < GPUS * SLICES; s++) {
        *slice = s % SLICES;
        if (device == &slice_handles[s / SLICES][s % SLICES]) return s / SLICES;
    }
    *slice = -1;
    return index_of(device);
}

/* For functions that take the handle of a MIG device too; its handle is worth nothing once it is destroyed. */
#define ENTER_ANY(device)                                          \
    int at;                                                        \
    int g = gpu_of(device, &at);                                   \
    if (g < 0) return INVALID_ARGUMENT;                            \
    int code = enter(g, __func__);                                 \
    if (code) return leave(code);                                  \
    struct gpu *gpu = &script.gpus[g];                             \
    struct slice *slice = at < 0 ? NULL : &gpu->slices[at];        \
    if (slice && !slice->used) return leave(INVALID_ARGUMENT)

#define ENTER(device)                                              \
    int g = index_of(device);                                      \
    if (g < 0) return INVALID_ARGUMENT;                            \
    int code = enter(g, __func__);                                 \
    if (code) return leave(code);                                  \
    struct gpu *gpu = &script.gpus[g];                             \
    (void)gpu

static int put_text(char *into, unsigned int length, const char *text) {
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(into, text);
    return OK;
}

static int put_pci(pci_info *into, const char *bus) {
    memset(into, 0, sizeof *into);
    if (!*bus) return NOT_SUPPORTED;
    snprintf(into->bus_id, sizeof into->bus_id, "%s", bus);
    snprintf(into->bus_legacy, sizeof into->bus_legacy, "%.15s", strlen(bus) > 12 ? bus + 4 : bus);
    sscanf(bus, "%x:%x:%x", &into->domain, &into->bus, &into->device);
    return OK;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&mutex);
    read_script();
    if (!script.init) initialized++;
    return leave(script.init);
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    pthread_mutex_lock(&mutex);
    if (!initialized) return leave(UNINITIALIZED);
    initialized--;
    return leave(OK);
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "some NVML error";
    }
}

int nvmlSystemGetDriverVersion(char *into, unsigned int length) {
    int code = enter(-1, __func__);
    return leave(code ? code : put_text(into, length, script.driver));
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    int code = enter(-1, __func__);
    if (code) return leave(code);
    *version = script.cuda;
    return leave(script.cuda ? OK : NOT_SUPPORTED);
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    int code = enter(-1, __func__);
    *count = (unsigned int)script.gpu_count;
    return leave(code);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    int code = enter((int)index, __func__);
    if (code) return leave(code);
    if (index >= (unsigned int)script.gpu_count) return leave(INVALID_ARGUMENT);
    handles[index].index = (int)index;
    *device = &handles[index];
    return leave(OK);
}

int nvmlDeviceGetUUID(void *device, char *into, unsigned int length) {
    ENTER_ANY(device);
    return leave(put_text(into, length, slice ? slice->uuid : gpu->uuid));
}

int nvmlDeviceGetName(void *device, char *into, unsigned int length) {
    ENTER_ANY(device);
    const char *name = slice ? slice->name : gpu->name;
    return leave(*name ? put_text(into, length, name) : NOT_SUPPORTED);
}

int nvmlDeviceGetSerial(void *device, char *into, unsigned int length) {
    ENTER(device);
    return leave(*gpu->serial ? put_text(into, length, gpu->serial) : NOT_SUPPORTED);
}

int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *into) {
    ENTER_ANY(device);
    long long memory = slice ? slice->memory : gpu->memory;
    if (memory < 0) return leave(NOT_SUPPORTED);
    into->total = (unsigned long long)memory;
    into->used = (unsigned long long)(slice || gpu->used < 0 ? 0 : gpu->used);
    into->free = into->total - into->used;
    return leave(OK);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *into) {
    ENTER_ANY(device);
    if (into->version != (sizeof *into | 2u << 24)) return leave(VERSION_MISMATCH);
    long long memory = slice ? slice->memory : gpu->memory;
    if (memory < 0) return leave(NOT_SUPPORTED);
    into->total = (unsigned long long)memory;
    into->used = (unsigned long long)(slice || gpu->used < 0 ? 0 : gpu->used);
    into->reserved = 0;
    into->free = into->total - into->used;
    return leave(OK);
}

int nvmlDeviceGetRemappedRows(void *device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending,
                              unsigned int *failed) {
    ENTER(device);
    if (gpu->remap < 0) return leave(NOT_SUPPORTED);
    *corrected = *uncorrected = *pending = 0;
    *pending = gpu->pending > 0;
    *failed = gpu->remap > 0;
    return leave(OK);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned int link, unsigned int *type) {
    ENTER(device);
    if (link >= LINKS || gpu->link[link] == -1) return leave(NOT_SUPPORTED);
    *type = gpu->link[link] == -2 ? 2 : 0;
    return leave(OK);
}
#endif

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryAffinity(void *device, unsigned int size, unsigned long *nodes, unsigned int scope) {
    ENTER(device);
    if (!size || scope != 0) return leave(INVALID_ARGUMENT);
    if (gpu->numa < 0) return leave(NOT_SUPPORTED);
    memset(nodes, 0, size * sizeof *nodes);
    nodes[gpu->numa / 64] = 1ul << gpu->numa % 64;
    return leave(OK);
}
#endif

int nvmlDeviceGetRetiredPagesPendingStatus(void *device, int *pending) {
    ENTER(device);
    if (gpu->retire < 0) return leave(NOT_SUPPORTED);
    *pending = gpu->retire > 0;
    return leave(OK);
}

int nvmlDeviceGetFieldValues(void *device, int count, field_value *values) {
    ENTER(device);
    for (int i = 0; i < count; i++) {
        values[i].code = values[i].field == RECOVERY_ACTION && gpu->recovery >= 0 ? OK : NOT_SUPPORTED;
        values[i].type = 1;
        values[i].value = (unsigned long long)(gpu->recovery < 0 ? 0 : gpu->recovery);
    }
    return leave(OK);
}

int nvmlDeviceGetUtilizationRates(void *device, utilization *into) {
    ENTER(device);
    if (gpu->util < 0) return leave(NOT_SUPPORTED);
    into->gpu = (unsigned int)gpu->util;
    into->memory = 0;
    return leave(OK);
}

int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *into) {
    ENTER(device);
    if (sensor != 0) return leave(INVALID_ARGUMENT);
    if (gpu->temp < 0) return leave(NOT_SUPPORTED);
    *into = (unsigned int)gpu->temp;
    return leave(OK);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *into) {
    ENTER(device);
    if (gpu->power < 0) return leave(NOT_SUPPORTED);
    *into = (unsigned int)gpu->power;
    return leave(OK);
}

int nvmlDeviceGetPciInfo_v3(void *device, pci_info *into) {
    ENTER(device);
    return leave(put_pci(into, gpu->bus));
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    ENTER(device);
    if (gpu->mig < 0) return leave(NOT_SUPPORTED);
    *current = *pending = (unsigned int)gpu->mig;
    return leave(OK);
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *count) {
    ENTER(device);
    *count = gpu->mig < 0 ? 0 : SLICES;
    return leave(OK);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned int index, void **into) {
    ENTER(device);
    if (index >= SLICES) return leave(INVALID_ARGUMENT);
    if (!gpu->slices[index].used) return leave(NOT_FOUND);
    *into = &slice_handles[g][index];
    return leave(OK);
}

/* Only of MIG devices. */
static int put_id(unsigned int *into, struct slice *slice, long long id) {
    if (!slice) return INVALID_ARGUMENT;
    if (id < 0) return NOT_SUPPORTED;
    *into = (unsigned int)id;
    return OK;
}

int nvmlDeviceGetGpuInstanceId(void *device, unsigned int *id) {
    ENTER_ANY(device);
    return leave(put_id(id, slice, slice ? slice->gi : -1));
}

int nvmlDeviceGetComputeInstanceId(void *device, unsigned int *id) {
    ENTER_ANY(device);
    return leave(put_id(id, slice, slice ? slice->ci : -1));
}

int nvmlDeviceGetAttributes_v2(void *device, attributes *into) {
    ENTER_ANY(device);
    if (!slice) return leave(INVALID_ARGUMENT);
    if (slice->g < 0) return leave(NOT_SUPPORTED);
    memset(into, 0, sizeof *into);
    into->gpu_instance_slices = (unsigned int)slice->g;
    into->compute_instance_slices = (unsigned int)(slice->c < 0 ? slice->g : slice->c);
    into->memory_mb = (unsigned long long)(slice->mb < 0 ? 0 : slice->mb);
    return leave(OK);
}

int nvmlDeviceGetTotalEccErrors(void *device, unsigned int type, unsigned int counter, unsigned long long *count) {
    ENTER(device);
    if (type != 1 || counter != 0) return leave(INVALID_ARGUMENT);
    if (gpu->ecc < 0) return leave(NOT_SUPPORTED);
    *count = (unsigned long long)gpu->ecc;
    return leave(OK);
}

int nvmlDeviceGetNvLinkState(void *device, unsigned int link, unsigned int *active) {
    ENTER(device);
    if (link >= LINKS) return leave(INVALID_ARGUMENT);
    *active = gpu->link[link] != -1;
    return leave(OK);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned int link, pci_info *into) {
    ENTER(device);
    if (link >= LINKS || gpu->link[link] < 0) return leave(NOT_SUPPORTED);
    return leave(put_pci(into, script.gpus[gpu->link[link]].bus));
}

int nvmlDeviceGetTopologyCommonAncestor(void *device, void *other, unsigned int *level) {
    int o = index_of(other);
    ENTER(device);
    if (o < 0) return leave(INVALID_ARGUMENT);
    if (gpu->topology[o] < 0) return leave(NOT_SUPPORTED);
    *level = (unsigned int)gpu->topology[o];
    return leave(OK);
}

int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *types) {
    ENTER(device);
    if (gpu->events < 0) return leave(NOT_SUPPORTED);
    *types = (unsigned long long)gpu->events;
    return leave(OK);
}

int nvmlEventSetCreate(void **set) {
    int code = enter(-1, __func__);
    memset(&event_set, 0, sizeof event_set);
    *set = &event_set;
    return leave(code);
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    ENTER(device);
    if (set != &event_set || types & ~(unsigned long long)gpu->events) return leave(NOT_SUPPORTED);
    event_set.registered[g] |= types;
    return leave(OK);
}

static int next_event(event_data *into) {
    while (delivered < script.event_count) {
        struct event *event = &script.events[delivered++];
        if (event->gpu >= 0 && !(event_set.registered[event->gpu] & event->type)) continue;
        memset(into, 0, sizeof *into);
        into->device = event->gpu >= 0 ? (void *)&handles[event->gpu] : (void *)&event_set;
        into->type = event->type;
        into->data = event->data;
        return 1;
    }
    return 0;
}

int nvmlEventSetWait_v2(void *set, event_data *into, unsigned int timeout_ms) {
    if (set != &event_set) return INVALID_ARGUMENT;
    for (unsigned int waited_ms = 0;; waited_ms += 10) {
        int code = enter(-1, __func__);
        if (code || next_event(into)) return leave(code);
        leave(OK);
        if (waited_ms >= timeout_ms) return TIMEOUT;
        struct timespec ten_ms = {0, 10000000};
        nanosleep(&ten_ms, NULL);
    }
}

int nvmlEventSetFree(void *set) { return set == &event_set ? OK : INVALID_ARGUMENT; }
